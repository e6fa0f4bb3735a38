"""PCA: scores by hand, balanced easy images, tiles in their place, and crops that stay inside one tile."""

import pytest
import torch
from torch.nn import functional

from attar.data.soft_labels import Views
from attar.errors import DataError, RecipeError
from attar.methods.data.pca import PruneCombineAugment, TileCrops, easiest, error_norms, mosaic
from attar.nets import ConvNet
from attar.run import Adam
from attar.train.training import Training

NET = ConvNet(depth=1, width=6, norm="batch")
FIELDS = {"ipc": 1, "net": NET, "scorers": 2, "scoring": Training(steps=8, batch=12, optimizer=Adam(lr=0.02))}


def rng():
    return torch.Generator().manual_seed(0)


def test_scores_are_the_length_of_the_error_of_the_probabilities():
    logits = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3]]).log()
    expected = [(0.2**2 + 0.1**2 + 0.1**2) ** 0.5, (0.2**2 + 0.5**2 + 0.7**2) ** 0.5]
    assert error_norms(logits, torch.tensor([0, 2])).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_easiest_of_every_class_are_kept_in_equal_numbers(tiny_images):
    data = tiny_images(each=4)
    scores = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.9, 0.8, 0.7, 0.6, 0.0, 0.0, 0.5, 0.1])
    assert easiest(scores, data, 2, None, rng()).tolist() == [[1, 3], [7, 6], [8, 9]]


def test_a_pool_is_drawn_from_at_random_and_is_never_too_small(tiny_images):
    data = tiny_images(each=8)
    scores = torch.arange(24.0)
    drawn = torch.cat([easiest(scores, data, 2, 0.5, torch.Generator().manual_seed(s)) for s in range(60)], 1)
    assert [sorted(set(row.tolist())) for row in drawn] == [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19]]
    assert all(len(set(row.tolist())) == 3 for row in easiest(scores, data, 3, 0.01, rng()))
    assert set(easiest(scores, data, 8, 1.0, rng())[0].tolist()) == set(range(8))


def test_tiles_are_averaged_images_row_by_row():
    images = torch.arange(8.0).view(8, 1, 1, 1) * torch.ones(8, 2, 4, 4)
    images[0, 0] += torch.tensor([[0.0, 4.0], [4.0, 8.0]]).repeat(2, 2)  # averages to 4 in each 2×2
    made = mosaic(images, 2)
    assert made.shape == (2, 2, 4, 4)
    assert made[0, 0].tolist() == [[4, 4, 1, 1], [4, 4, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert made[1, 1].tolist() == [[4, 4, 5, 5], [4, 4, 5, 5], [6, 6, 7, 7], [6, 6, 7, 7]]
    assert mosaic(images, 1) is images


def tile_crops(tiles=2, passes=200, **views):
    """Three pictures whose tiles are flat, each of its own value."""
    values = torch.arange(3.0 * tiles**2).view(3, 1, tiles, tiles)
    images = functional.interpolate(values, size=8, mode="nearest")
    return TileCrops(images, torch.arange(3), tiles, views=Views(**views), key=3, passes=passes)


def test_a_crop_never_leaves_its_tile_and_every_tile_is_seen():
    source = tile_crops()
    shown, labels = source.batch(torch.arange(len(source)))
    assert len(source) == 600
    low, high = shown.amin((1, 2, 3)), shown.amax((1, 2, 3))
    torch.testing.assert_close(low, high, rtol=0, atol=1e-5)  # one flat tile, nothing of its neighbours
    counts = torch.bincount(shown.mean((1, 2, 3)).round().long(), minlength=12)
    assert int(counts.min()) > 25
    assert torch.equal(low.round().long() // 4, labels)


def test_a_whole_tile_is_enlarged_to_the_full_size():
    ramp = torch.arange(4.0).repeat(4, 1)
    images = torch.cat([torch.cat([ramp, ramp], 1)] * 2)[None, None]
    source = TileCrops(
        images, torch.zeros(1).long(), 2, views=Views(scale=(1, 1), ratio=(1, 1), flip=0), key=1, passes=4
    )
    shown, _ = source.batch(torch.arange(4))
    expected = functional.interpolate(ramp[None, None], size=8, mode="bilinear", align_corners=False)
    torch.testing.assert_close(shown, expected.expand(4, 1, 8, 8))


def test_without_tiles_these_are_the_usual_views_and_they_replay(tiny_images):
    data = tiny_images(channels=3)
    views = Views(scale=(0.3, 1.0))
    source = TileCrops(data.normalised(), data.labels, 1, views=views, key=9, passes=2)
    rows = torch.tensor([40, 3, 71])
    shown, labels = source.batch(rows)
    torch.testing.assert_close(shown, views.images(data, 9, rows % 36, rows // 36))
    assert torch.equal(source.batch(rows[:1])[0], shown[:1])
    assert torch.equal(labels, data.labels[rows % 36])


def test_a_set_is_made_of_tiles_of_easy_images_of_its_class(open_run, tiny_images):
    data = tiny_images(channels=3)
    with open_run() as run:
        method = PruneCombineAugment(**FIELDS)
        made = method(run, data=data)
        scores = method.scores(run, data)
    chosen = easiest(scores, data, 4, None, rng())
    expected = functional.avg_pool2d(data.normalised(chosen[1]), 2)
    torch.testing.assert_close(made.images[1, :, :4, :4], expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.images[1, :, 4:, :4], expected[2], rtol=1e-4, atol=1e-4)
    assert made.labels.tolist() == [0, 1, 2]
    assert made.hints["tiles"] == 2


def test_scorers_differ_and_their_scores_are_averaged(open_run, tiny_images):
    data = tiny_images()
    with open_run() as run:
        one = PruneCombineAugment(**{**FIELDS, "scorers": 1}).scores(run, data)
        two = PruneCombineAugment(**FIELDS).scores(run, data)
        stages = list((run.folder.parent / "home" / "stages").glob("*/artifact"))
    assert len(stages) == 2
    assert not torch.equal(one, two)
    assert (two <= 2**0.5).all()
    assert (2 * two - one >= -1e-6).all()  # the second scorer's


def test_mislabelled_images_are_hard_ones(open_run, tiny_images):
    data = tiny_images(each=20)
    data.labels[:3] = 1  # of class 0
    scoring = Training(steps=60, batch=20, optimizer=Adam(lr=0.02))
    with open_run() as run:
        scores = PruneCombineAugment(**{**FIELDS, "scoring": scoring}).scores(run, data)
    assert float(scores[:3].min()) > float(scores[3:].median())


def test_random_images_need_no_scorer(open_run, tiny_images):
    with open_run() as run:
        made = PruneCombineAugment(**{**FIELDS, "pool": 1.0, "tiles": 1})(run, data=tiny_images())
        assert not (run.folder.parent / "home" / "stages").exists()
    assert len(made) == 3


def test_too_small_a_class_odd_tiles_and_mixing_are_refused(open_run, tiny_images):
    with open_run() as run, pytest.raises(DataError, match=r"12 images, 16 were asked for \(ipc · tiles²\)"):
        PruneCombineAugment(**{**FIELDS, "ipc": 4})(run, data=tiny_images())
    with open_run() as run, pytest.raises(RecipeError, match="3×3 equal tiles; tiles can be 1, 2, 4, 8"):
        PruneCombineAugment(**{**FIELDS, "tiles": 3})(run, data=tiny_images())
    with pytest.raises(RecipeError, match="do not mix"):
        tile_crops(mix="cutmix")

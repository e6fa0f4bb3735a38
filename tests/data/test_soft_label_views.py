"""Views replay exactly, row by row, and mean what their names say."""

import pytest
import torch
from pydantic import ValidationError

from attar.data import from_tensors
from attar.data.soft_labels import Views
from attar.data.soft_labels.views import crop, cutmix, flip, mixup

KEY = 20_260_101
PINNED = {
    "box": [[2, 4, 22, 20], [3, 5, 29, 26]],
    "mirrored": [True, False],
    "partner": [87, 4],
    "paste": [[21, 13, 0, 0], [7, 18, 15, 14]],
    "share": [0.9996785521507263, 0.7722952961921692],
}
MIXES = ("none", "mixup", "cutmix")


@pytest.fixture
def images():
    pixels = torch.rand(30, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    return from_tensors(pixels, torch.arange(30) % 3)


def draw(views, n=4000, size=32, count=500):
    samples = torch.arange(n) % count
    return views.draw(KEY, samples, torch.arange(n) // count, count=count, size=size)


@pytest.mark.parametrize("mix", MIXES)
def test_a_row_replays_bit_for_bit_in_any_batch_and_order(images, mix):
    views = Views(mix=mix, mix_alpha=0.4)
    samples, numbers = torch.arange(30), torch.arange(30) % 4
    together = views.images(images, KEY, samples, numbers)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(views.images(images, KEY, samples[order], numbers[order]), together[order])
    alone = [views.images(images, KEY, samples[i : i + 1], numbers[i : i + 1]) for i in range(30)]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("augment", ["dsa", "dsa-always-flip", "color_cutout"])
def test_differentiable_augmentation_replays_for_each_row_alone(images, augment):
    views = Views(augment=augment, mix="mixup")
    samples, numbers = torch.arange(30), torch.arange(30) % 4
    together = views.images(images, KEY, samples, numbers)
    alone = [views.images(images, KEY, samples[i : i + 1], numbers[i : i + 1]) for i in range(30)]
    assert torch.allclose(torch.cat(alone), together, atol=1e-5)
    assert not torch.allclose(together, Views(mix="mixup").images(images, KEY, samples, numbers), atol=0.1)


def test_each_image_draws_its_own_augmentation_by_the_ops_own_rule(images):
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
    x = Views(**still).images(images, KEY, torch.arange(30), torch.zeros(30).long())
    cut = Views(**still, augment="cutout").images(images, KEY, torch.arange(30), torch.zeros(30).long())
    erased = (cut == 0).all(1) & (x != 0).any(1)
    assert torch.allclose(torch.where(erased[:, None], x, cut), x)
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in erased}) > 10  # not one square for all
    assert erased.flatten(1).sum(1).max() == 36  # half a side, whole inside the picture


def test_the_parameters_of_a_view_are_pinned():
    """A stored label is worth nothing if a later version draws another view: these numbers may never change."""
    views = Views(mix="cutmix")
    drawn = views.draw(KEY, torch.tensor([0, 7]), torch.tensor([0, 3]), count=100, size=32)
    assert drawn.box.tolist() == PINNED["box"]
    assert drawn.mirrored.tolist() == PINNED["mirrored"]
    assert drawn.partner.tolist() == PINNED["partner"]
    assert drawn.paste.tolist() == PINNED["paste"]
    assert drawn.share.tolist() == pytest.approx(PINNED["share"], abs=1e-6)


def test_the_hash_is_splitmix64():
    """First outputs of SplitMix64 from seed 1234567, as its author's code gives them."""
    import numpy as np

    from attar.data.soft_labels.views import _mixed

    step, seed = np.uint64(0x9E3779B97F4A7C15), np.array([1234567], np.uint64)
    outputs = [int(_mixed(seed + np.array([i], np.uint64) * step)[0]) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(("key", "sample", "view"), [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_key_sample_and_view_each_change_the_view(key, sample, view):
    views, zero = Views(mix="mixup"), torch.zeros(64).long()
    samples = torch.arange(64)
    base = views.draw(KEY, samples, zero, count=64, size=32)
    other = views.draw(KEY + key, (samples + sample) % 64, zero + view, count=64, size=32)
    for name in ("box", "mirrored", "partner", "share"):
        assert not torch.equal(getattr(base, name), getattr(other, name))


def test_crops_have_the_area_the_ratio_and_the_places_of_their_ranges():
    drawn = draw(Views(scale=(0.25, 0.6)), size=64)
    top, left, height, width = drawn.box.double().unbind(1)
    area, ratio = height * width / 64**2, width / height
    assert area.min() > 0.25 - 0.02
    assert area.max() < 0.6 + 0.02
    assert ratio.min() > 3 / 4 - 0.04
    assert ratio.max() < 4 / 3 + 0.04
    assert ratio.log().mean().abs() < 0.02
    assert (area.mean() - 0.425).abs() < 0.01
    assert top.min() == 0
    assert left.min() == 0
    assert (top + height).max() == 64
    assert (left + width).max() == 64
    centre = torch.stack([top + height / 2, left + width / 2]).mean(1)
    assert (centre - 32).abs().max() < 0.5


def test_flips_come_as_often_as_asked():
    for chance in (0.0, 0.3, 1.0):
        assert draw(Views(flip=chance)).mirrored.double().mean() == pytest.approx(chance, abs=0.03)


def test_shares_follow_the_beta_distribution():
    for alpha in (0.2, 1.0, 3.0):
        share = draw(Views(mix="mixup", mix_alpha=alpha)).share.double()
        assert share.mean() == pytest.approx(0.5, abs=0.02)
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_partners_are_drawn_from_the_whole_set_and_only_where_something_is_mixed():
    drawn = draw(Views(mix="mixup", mix_probability=0.25), n=5000, count=50)
    alone = drawn.share == 1
    assert alone.double().mean() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(drawn.partner[alone], (torch.arange(5000) % 50)[alone])
    assert torch.bincount(drawn.partner[~alone], minlength=50).min() > 0


def test_the_pasted_rectangle_has_the_area_that_the_share_leaves():
    drawn = draw(Views(mix="cutmix"), size=64)
    top, left, height, width = drawn.paste.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 64).all()
    assert (left + width <= 64).all()
    whole = (top > 0) & (left > 0) & (top + height < 64) & (left + width < 64)  # not clipped at a border
    assert torch.equal(height[whole], width[whole])
    left_over = 1 - drawn.share[whole]
    assert ((height[whole].float() / 64) ** 2 <= left_over + 1e-6).all()
    assert (((height[whole].float() + 1) / 64) ** 2 >= left_over - 1e-6).all()


def test_a_crop_of_the_whole_picture_changes_nothing(images):
    x = images.normalised()
    assert torch.allclose(crop(x, torch.tensor([[0, 0, 12, 12]]).expand(30, 4)), x, atol=1e-5)


def test_a_crop_of_a_quarter_is_that_quarter_resized():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    out = crop(x, torch.tensor([[2, 0, 2, 2]]))[0, 0]
    # centres of four cells over two pixels: −1/4, 1/4, 3/4, 5/4 from the first pixel's centre, so linear in x and y
    rows, columns = torch.tensor([1.75, 2.25, 2.75, 3.0]), torch.tensor([0.0, 0.25, 0.75, 1.25])
    assert torch.allclose(out, 4 * rows[:, None] + columns)


def test_a_view_without_crop_flip_or_mix_is_the_image(images):
    still = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    out = still.images(images, KEY, torch.arange(5), torch.arange(5))
    assert torch.allclose(out, images.normalised(torch.arange(5)), atol=1e-5)


def test_flip_mixup_and_cutmix_are_their_formulas():
    x, other = torch.arange(8.0).reshape(2, 1, 2, 2), -torch.ones(2, 1, 2, 2)
    assert flip(x, torch.tensor([True, False])).flatten().tolist() == [1, 0, 3, 2, 4, 5, 6, 7]
    assert mixup(x, other, torch.tensor([1.0, 0.25]))[1].flatten().tolist() == [0.25, 0.5, 0.75, 1.0]
    pasted = cutmix(x, other, torch.tensor([[0, 1, 2, 1], [0, 0, 0, 0]]))
    assert pasted.flatten().tolist() == [0, -1, 2, -1, 4, 5, 6, 7]


def test_the_partner_is_shown_in_its_own_crop_of_the_same_view(images):
    views = Views(mix="mixup")
    samples, numbers = torch.arange(6), torch.full((6,), 2)
    drawn = views.draw(KEY, samples, numbers, count=30, size=12)
    unmixed = Views()
    own = unmixed.images(images, KEY, samples, numbers)
    theirs = unmixed.images(images, KEY, drawn.partner, numbers)
    expected = drawn.share[:, None, None, None] * own + (1 - drawn.share)[:, None, None, None] * theirs
    assert torch.allclose(views.images(images, KEY, samples, numbers), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"scale": (0.5, 1.5)},
        {"ratio": (2.0, 1.0)},
        {"ratio": (1e-300, 1.0)},
        {"ratio": (1.0, 1e300)},
        {"mix": "blend"},
        {"augment": "dsaa"},
    ],
)
def test_ranges_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValidationError):
        Views(**fields)

"""The data that DCC's and FYI's claims construct is what they say, and FYI's cheap trick is a random mirror."""

import pytest
import torch

from attar.claims import dcc, fyi
from attar.data.sources import Splits


@pytest.fixture
def splits(tiny_images):
    return Splits(tiny_images(classes=10, each=4), tiny_images(classes=10, each=3, seed=8), "")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_tops_are_five_classes_numbered_anew(splits):
    found = dcc.tops(splits)
    assert found.train.classes == ("class 0", "class 2", "class 3", "class 4", "class 6")
    assert found.train.labels.tolist() == [label for label in range(5) for _ in range(4)]
    assert torch.equal(found.train.pixels[4:8], splits.train.pixels[8:12])
    assert torch.equal(found.test.pixels[-3:], splits.test.pixels[18:21])


def test_stripes_are_bright_lines_that_change_with_the_seed():
    patterns = [dcc.stripes(14, rng(seed)) for seed in range(20)]
    for pattern in patterns:
        assert pattern.shape == (1, 14, 14)
        assert set(pattern.unique().tolist()) <= {0.0, 1.0}
        assert pattern.any()
        rows, columns = pattern[0].std(1).max(), pattern[0].std(0).max()
        assert min(rows, columns) == 0  # along the stripes nothing changes
    assert len({str(pattern.tolist()) for pattern in patterns}) == 20


def test_every_image_wears_the_same_stripes_and_keeps_its_picture(splits):
    pattern = dcc.stripes(8, rng())
    found = dcc.striped(splits, pattern)
    for new, old in ((found.train, splits.train), (found.test, splits.test)):
        torch.testing.assert_close(2 * new.pixels - pattern, old.unit())
        assert torch.equal(new.labels, old.labels)
        torch.testing.assert_close(new.mean, found.train.pixels.mean((0, 2, 3)))
        torch.testing.assert_close(new.std, found.train.pixels.std((0, 2, 3)))


def test_mirrored_data_is_half_of_each(splits):
    found = fyi.mirrored(splits, rng())
    for new, old in ((found.train, splits.train), (found.test, splits.test)):
        same = (new.pixels == old.pixels).flatten(1).all(1)
        turned = (new.pixels == old.pixels.flip(3)).flatten(1).all(1)
        assert (same ^ turned).all()
        assert 0.2 < same.float().mean() < 0.8
        assert torch.equal(new.labels, old.labels)


def test_the_cheap_trick_shows_each_image_or_its_mirror_image_at_random():
    torch.manual_seed(0)
    images = torch.rand(6, 5, 1, 3, 3)
    method = fyi.RandomlyFlipped(ipc=5)
    shown = method.shown(images)
    same = (shown == images).flatten(2).all(2)
    turned = (shown == images.flip(4)).flatten(2).all(2)
    assert (same ^ turned).all()
    assert 0.2 < same.float().mean() < 0.8
    assert not torch.equal(method.shown(images), shown)

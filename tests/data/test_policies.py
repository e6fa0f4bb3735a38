"""Policies do to a batch what Pillow does to a picture, draw once for all of it, and reach as far as published."""

import collections
import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from attar.data import policies
from attar.data.policies import CIFAR10, RANDAUGMENT, apply, draw, magnitude


def pictures(channels=3, size=14, count=4):
    rng = torch.Generator().manual_seed(5)
    smooth = torch.nn.functional.interpolate(torch.rand(count, channels, 4, 4, generator=rng), size=(size, size))
    noise = torch.rand(count, channels, size, size, generator=rng)
    return ((0.8 * smooth + 0.15 * noise) * 255).round()


def pillow(x, function):
    """Do something to every picture of a batch with Pillow."""
    done = []
    for each in x:
        array = each.byte().permute(1, 2, 0).numpy()
        picture = Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
        out = np.asarray(function(picture)).astype(np.float32)
        done.append(torch.from_numpy(np.atleast_3d(out)).permute(2, 0, 1))
    return torch.stack(done)


def affine(*matrix):
    return lambda picture: picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


SAME = {
    ("shear x", 0.27): affine(1, 0.27, 0, 0, 1, 0),
    ("shear y", -0.3): affine(1, 0, 0, -0.3, 1, 0),
    ("move x", 3.0): affine(1, 0, 3, 0, 1, 0),
    ("move y", -4.0): affine(1, 0, 0, 0, 1, -4),
    ("rotate", 22.5): lambda picture: picture.rotate(22.5),
    ("brightness", 0.4): lambda picture: ImageEnhance.Brightness(picture).enhance(1.4),
    ("color", -0.5): lambda picture: ImageEnhance.Color(picture).enhance(0.5),
    ("contrast", 0.6): lambda picture: ImageEnhance.Contrast(picture).enhance(1.6),
    ("sharpness", 0.7): lambda picture: ImageEnhance.Sharpness(picture).enhance(1.7),
    ("sharpness", -0.9): lambda picture: ImageEnhance.Sharpness(picture).enhance(0.1),
    ("posterize", 5.0): lambda picture: ImageOps.posterize(picture, 5),
    ("solarize", 113.3): lambda picture: ImageOps.solarize(picture, 113.3),
    ("autocontrast", 0.0): ImageOps.autocontrast,
    ("equalize", 0.0): ImageOps.equalize,
    ("invert", 0.0): ImageOps.invert,
    ("flip", 1.0): ImageOps.mirror,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", list(SAME), ids=str)
def test_operations_are_pillows_to_a_grey_level(step, channels):
    x = pictures(channels, size=20)
    out = apply(x, [step])
    assert (out - pillow(x, SAME[step])).abs().max() <= 1.01
    assert torch.equal(out, out.round())
    assert 0 <= out.min() <= out.max() <= 255
    if step[0] != "color" or channels == 3:
        assert not torch.equal(out, x)


@pytest.mark.parametrize("share", [-0.2, 0.05, 0.17, 1 / 3])
def test_hues_turn_as_in_the_colour_circle(share):
    x = pictures(3)
    out = apply(x, [("hue", share)])
    for before, after in zip(x.permute(0, 2, 3, 1).reshape(-1, 3), out.permute(0, 2, 3, 1).reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255).tolist())
        wanted = torch.tensor(colorsys.hsv_to_rgb((hue + share) % 1, saturation, value)) * 255
        assert (after - wanted).abs().max() <= 0.51
    grey = pictures(1)
    assert torch.equal(apply(grey, [("hue", share)]), grey)


def test_the_imagenet_policy_shifts_mirrors_and_changes_colours_in_any_order():
    rng = torch.Generator().manual_seed(3)
    orders, most = set(), collections.defaultdict(float)
    for _ in range(200):
        steps = draw("imagenet", 32, rng)
        assert [name for name, _ in steps[:3]] == ["move x", "move y", "flip"]
        orders.add(tuple(name for name, _ in steps[3:]))
        for name, strength in steps[3:]:
            most[name] = max(most[name], abs(strength))
    assert len(orders) == 24
    assert {name: round(value, 1) for name, value in most.items()} == policies.JITTER


def test_pictures_of_one_grey_stay_as_they_are():
    x = torch.full((2, 1, 6, 6), 77.0)
    for name in ("autocontrast", "equalize"):
        assert torch.equal(apply(x, [(name, 0.0)]), x)


def test_the_published_policy_is_whole():
    pairs = [pair for line in CIFAR10.strip().splitlines() for pair in line.split(" | ")]
    assert len(pairs) == 25
    steps = [told.rsplit(" ", 2) for pair in pairs for told in pair.split(", ")]
    assert len(steps) == 50
    assert {name for name, _, _ in steps} <= set(policies._OPERATIONS)
    assert collections.Counter(name for name, _, _ in steps).most_common(2) == [("equalize", 9), ("autocontrast", 7)]
    assert len(set(RANDAUGMENT)) == 14


def test_magnitudes_end_where_the_papers_do():
    ends = {name: (magnitude(name, 0, 331), magnitude(name, 1, 331)) for name in policies._OPERATIONS}
    assert ends["shear x"] == (0, 0.3)
    assert ends["move y"] == (0, 150)
    assert ends["rotate"] == (0, 30)
    assert ends["color"] == (0, 0.9)
    assert ends["posterize"] == (8, 4)
    assert ends["solarize"] == (255, 0)


def test_draws_follow_the_policy():
    rng = torch.Generator().manual_seed(0)
    seen = collections.Counter()
    signs = collections.Counter()
    for _ in range(1500):
        ((name, strength),) = draw("randaug", 32, rng)
        seen[name] += 1
        if name == "rotate":
            assert abs(strength) == pytest.approx(9)
            signs[strength > 0] += 1
        if name == "solarize":
            assert strength == pytest.approx(255 * 0.7)
    assert set(seen) == set(RANDAUGMENT)
    assert min(seen.values()) > 60
    assert min(signs.values()) > 25
    lengths = collections.Counter(len(draw("autoaug", 32, rng)) for _ in range(600))
    assert set(lengths) == {0, 1, 2}
    assert draw("none", 32, rng) == []


def test_the_cifar_policy_shifts_mirrors_and_cuts_out_half_a_side():
    x = torch.full((3, 1, 16, 16), 200.0)
    rng = torch.Generator().manual_seed(2)
    shifts, mirrored, holes = set(), set(), set()
    for _ in range(200):
        steps = draw("cifar", 16, rng)
        assert [name for name, _ in steps] == ["move x", "move y", "flip", "cutout"]
        shifts |= {steps[0][1], steps[1][1]}
        mirrored.add(steps[2][1])
        holes.add(int((apply(x, steps[3:])[0] == 0).sum()))
    assert shifts == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert mirrored == {0.0, 1.0}
    assert max(holes) == 64

import json
import math

import pytest
import torch

from attar.data import DSA, View, augmentation
from attar.data import augment as ops
from attar.errors import RecipeError

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
SHAPE = (2, 8, 8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=5, shape=SHAPE, dtype=torch.float32, seed=0):
    return torch.randn(n, *shape, generator=rng(seed), dtype=dtype)


def one(value):
    return torch.tensor([value])


def test_brightness_adds():
    x = batch()
    assert torch.allclose(ops.color(x, one(0.3), one(1.0), one(1.0)), x + 0.3, atol=1e-6)


def test_saturation_moves_every_pixel_away_from_its_grey():
    x = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    out = ops.color(x, one(0.0), one(1.5), one(1.0))
    assert torch.allclose(out.flatten(), torch.tensor([0.5, 3.5]))
    assert torch.allclose(ops.color(x, one(0.0), one(0.0), one(1.0)).flatten(), torch.tensor([2.0, 2.0]))


def test_saturation_of_grey_images_is_the_identity():
    x = batch(shape=(1, 6, 6))
    assert torch.allclose(ops.color(x, one(0.0), one(1.9), one(1.0)), x, atol=1e-6)


def test_contrast_moves_every_pixel_away_from_its_image_mean():
    x = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 2, 1, 2)  # one mean for all channels
    out = ops.color(x, one(0.0), one(1.0), one(0.5))
    assert torch.allclose(out.flatten(), torch.tensor([2.0, 2.5, 3.0, 4.5]))


def test_contrast_comes_after_brightness_and_keeps_the_mean():
    x = batch()
    out = ops.color(x, torch.linspace(-0.5, 0.5, 5), one(0.4), one(1.3))
    assert torch.allclose(out.mean((1, 2, 3)), x.mean((1, 2, 3)) + torch.linspace(-0.5, 0.5, 5), atol=1e-5)


def test_crop_shifts_and_fills_with_zero():
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    out = ops.crop(x, one(1), one(-1))  # out[i, j] = x[i + 1, j - 1]
    assert out[0, 0].tolist() == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]


def test_crop_of_each_image_equals_the_shared_one():
    x = batch()
    rows, columns = torch.tensor([-2, 0, 1, 2, -1]), torch.tensor([1, -2, 0, 2, -1])
    separate = [ops.crop(x[i : i + 1], rows[i : i + 1], columns[i : i + 1]) for i in range(5)]
    assert torch.equal(ops.crop(x, rows, columns), torch.cat(separate))


def test_cutout_zeroes_a_clipped_square_around_its_centre():
    x = torch.ones(2, 3, 5, 5)
    out = ops.cutout(x, torch.tensor([2, 0]), torch.tensor([3, 5]), torch.tensor(2))
    zeros = [[tuple(i) for i in (image[0] == 0).nonzero().tolist()] for image in out]
    assert zeros == [[(1, 2), (1, 3), (2, 2), (2, 3)], [(0, 4)]]
    assert torch.equal(out[:, 0], out[:, 2])


def test_flip_mirrors_only_the_chosen_images():
    x = batch(2)
    out = ops.flip(x, torch.tensor([True, False]))
    assert torch.equal(out[0], x[0].flip(-1))
    assert torch.equal(out[1], x[1])


def test_scale_of_two_halves_the_picture():
    x = torch.ones(1, 1, 8, 8)
    out = ops.scale(x, one(2.0), one(1.0))[0, 0]  # reads twice as far to the sides: half as wide
    assert torch.allclose(out[:, 2:6], torch.ones(8, 4))
    assert torch.equal(out[:, [0, 1, 6, 7]], torch.zeros(8, 4))


def test_scale_below_one_reads_between_pixels():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    out = ops.scale(ramp, one(0.5), one(1.0))[0, 0, 0]
    assert torch.allclose(out, 3.5 + 0.5 * (torch.arange(8.0) - 3.5))


def test_rotate_by_a_quarter_turn_moves_rows_to_columns():
    x = batch(1)
    assert torch.allclose(ops.rotate(x, one(math.pi / 2)), x.rot90(1, (2, 3)), atol=1e-5)
    assert torch.allclose(ops.rotate(x, one(0.0)), x, atol=1e-6)


def test_rotate_turns_by_its_angle_with_the_papers_sign():
    # theta = [[cos, -sin], [sin, cos]]: the pixel right of the centre reads below the centre
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 2, 1] = 1
    assert ops.rotate(x, one(math.pi / 2))[0, 0, 1, 2].item() == pytest.approx(1, abs=1e-6)


def drawn(operation, n=4000, shape=(1, 14, 14)):
    return DSA(operation).draw(n, shape, rng(3)).operations[0][1]


def test_ranges_are_those_of_the_paper():
    color, scale, rotate = drawn("color"), drawn("scale"), drawn("rotate")
    limits = {
        "brightness": (color["brightness"], -0.5, 0.5),
        "saturation": (color["saturation"], 0, 2),
        "contrast": (color["contrast"], 0.5, 1.5),
        "horizontal": (scale["horizontal"], 1 / 1.2, 1.2),
        "vertical": (scale["vertical"], 1 / 1.2, 1.2),
        "radians": (rotate["radians"], -math.pi / 12, math.pi / 12),
    }
    for name, (values, low, high) in limits.items():
        margin = (high - low) * 0.005
        assert low <= values.min() < low + margin, name
        assert high - margin < values.max() <= high, name
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=(high - low) * 0.02), name
    assert abs(torch.corrcoef(torch.stack([scale["horizontal"], scale["vertical"]]))[0, 1]) < 0.05


@pytest.mark.parametrize(("side", "reach"), [(14, 2), (28, 4), (32, 4), (8, 1)])
def test_crop_shifts_by_an_eighth_at_most_and_reaches_every_shift(side, reach):
    parameters = drawn("crop", shape=(1, side, side))
    for values in parameters.values():
        assert sorted(set(values.tolist())) == list(range(-reach, reach + 1))


@pytest.mark.parametrize(("side", "square", "centres"), [(14, 7, 14), (32, 16, 33), (28, 14, 29)])
def test_cutout_is_half_a_side_with_its_centre_anywhere(side, square, centres):
    parameters = drawn("cutout", shape=(1, side, side))
    assert int(parameters["side"]) == square
    assert sorted(set(parameters["rows"].tolist())) == list(range(centres))
    assert sorted(set(parameters["columns"].tolist())) == list(range(centres))


def test_flip_has_even_chances():
    assert drawn("flip")["mirrored"].float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_one_of_six_operations_is_drawn_with_equal_chances_for_the_whole_batch():
    generator, counts = rng(), dict.fromkeys(OPERATIONS, 0)
    for _ in range(6000):
        view = DSA().draw(1, SHAPE, generator)
        assert len(view.operations) == 1
        counts[view.operations[0][0]] += 1
    for name, count in counts.items():
        assert count / 6000 == pytest.approx(1 / 6, abs=0.02), name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_siamese_view_treats_equal_images_alike_and_takes_any_batch(operation):
    x = batch(1)
    generator = rng(5)
    for _ in range(8):
        view = DSA(operation).draw(4, SHAPE, generator, siamese=True)
        out = view(x.expand(9, -1, -1, -1))
        assert torch.equal(out, view(x).expand(9, -1, -1, -1))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_view_of_its_own_for_each_image(operation):
    x = batch(1).expand(16, -1, -1, -1)
    view = DSA(operation).draw(16, SHAPE, rng(1))
    assert len({tuple(image.flatten().tolist()) for image in view(x)}) > 1
    with pytest.raises(ValueError, match="drawn for 16 images"):
        view(batch(3))


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_same_generator_same_view_and_json_replays_it_exactly(operation, siamese):
    x = batch()
    view = DSA(operation).draw(5, SHAPE, rng(2), siamese)
    again = DSA(operation).draw(5, SHAPE, rng(2), siamese)
    replayed = View.from_state(json.loads(json.dumps(view.state())))
    assert torch.equal(view(x), again(x))
    assert torch.equal(view(x), replayed(x))


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_flow_to_the_pixels(operation, siamese):
    x = batch(2, (2, 4, 4), torch.float64).requires_grad_()
    view = DSA(operation).draw(2, (2, 4, 4), rng(6), siamese)
    assert torch.autograd.gradcheck(view, x)
    assert view(x).dtype == torch.float64


def test_always_flip_flips_half_of_the_calls_and_draws_one_of_the_other_five():
    generator, flips, seen = rng(), 0, set()
    for _ in range(1000):
        view = DSA(always_flip=True).draw(1, SHAPE, generator, siamese=True)
        (first, parameters), (second, _) = view.operations
        assert first == "flip"
        flips += int(parameters["mirrored"])
        seen.add(second)
    assert flips / 1000 == pytest.approx(0.5, abs=0.05)
    assert seen == set(OPERATIONS) - {"flip"}


def test_names_stand_for_strategies():
    x = batch()
    assert augmentation("none").is_identity
    assert torch.equal(augmentation("none").draw(5, SHAPE, rng())(x), x)
    assert augmentation("dsa") == DSA()
    assert augmentation("dsa-noflip").operations == ("color", "crop", "cutout", "scale", "rotate")
    assert augmentation("flip").operations == ("flip",)
    assert augmentation("crop_rotate").operations == ("crop", "rotate")
    assert augmentation("dsa-always-flip").always_flip


@pytest.mark.parametrize(
    ("name", "message"),
    [("das", "did you mean 'dsa'"), ("crop_rotat", "did you mean 'rotate'"), ("crop_crop", "twice"), ("", "unknown")],
)
def test_unknown_augmentations_are_refused(name, message):
    with pytest.raises(RecipeError, match=message):
        augmentation(name)


def test_crop_and_flip_are_both_drawn_for_every_image():
    view = augmentation("crop-and-flip").draw(200, (1, 32, 32), torch.Generator().manual_seed(0))
    flips, crops = (dict(view.operations)[name] for name in ("flip", "crop"))
    assert 70 < int(flips["mirrored"].sum()) < 130
    assert set(crops["rows"].tolist()) == set(range(-4, 5))  # four pixels either way at 32

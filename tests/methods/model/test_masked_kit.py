"""The masking kit: counts, unions and blocks of masks, and targets against hand-made pictures."""

import math

import pytest
import torch

from attar.errors import RecipeError
from attar.methods.model.masked.masks import disjoint_maskings, kept_of, least_redundant, random_masking
from attar.methods.model.masked.targets import HOG, Pixels, gradient_histograms, images_of, patches_of, standardised
from attar.nets import ViT


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_random_masks_hide_the_same_number_in_every_image_and_differ():
    masking = random_masking(64, 7, 0.75, rng())
    assert masking.kept.shape == (64, 12)  # int(49 · 0.25)
    assert masking.hidden.sum(1).eq(37).all()
    assert len({tuple(row.sort().values.tolist()) for row in masking.kept}) == 64
    share = random_masking(4000, 4, 0.75, rng()).hidden.double().mean(0)
    assert (share - 0.75).abs().max() < 0.04


def test_a_masking_that_keeps_or_hides_nothing_is_refused():
    assert kept_of(16, 0.6) == 6
    assert kept_of(10, 0.9) == 1  # not 0 for the rounding of 1 - 0.9
    for hidden in (0.99, 0.0):
        with pytest.raises(RecipeError, match=r"hidden="):
            kept_of(16, hidden)


@pytest.mark.parametrize("side", [4, 7])
def test_blocks_are_hidden_together(side):
    hidden = random_masking(200, side, 0.5, rng(1), block=2).hidden.unflatten(1, (side, side))
    assert hidden.flatten(1).sum(1).unique().numel() == 1
    blocks = hidden[:, : side // 2 * 2, : side // 2 * 2].unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).sum(3)
    partial = ((blocks > 0) & (blocks < 4)).flatten(1).sum(1)
    assert partial.max() <= 1


@pytest.mark.parametrize(
    ("side", "hidden", "predicted", "views"),
    [(4, 0.5, 1.0, 2), (7, 0.6, 1.0, 2), (7, 0.6, 0.8, 2), (7, 0.4, 1.0, 3), (7, 0.6, 0.6, 1)],
)
@pytest.mark.parametrize("block", [1, 2])
def test_disjoint_views_hide_every_place_they_should_and_equally_many_each(side, hidden, predicted, views, block):
    drawn = disjoint_maskings(50, side, hidden, rng(2), predicted=predicted, views=views, block=block)
    masked = side**2 - kept_of(side**2, hidden)
    counts = torch.stack([one.hidden for one in drawn])
    assert counts.sum(2).eq(masked).all()
    union = counts.any(0).sum(1)
    assert union.eq(min(max(round(predicted * side**2), masked), views * masked)).all()


def test_two_views_of_half_the_places_are_complementary_in_each_image():
    first, second = disjoint_maskings(30, 4, 0.5, rng(3))
    assert torch.equal(first.hidden, ~second.hidden)
    assert len({tuple(row.tolist()) for row in first.hidden}) > 20


def test_a_later_view_hides_what_no_earlier_one_hid_first():
    first, second = disjoint_maskings(30, 7, 0.6, rng(4))
    new = second.hidden & ~first.hidden
    assert new.sum(1).eq(19).all()  # those that the first shows
    with pytest.raises(RecipeError, match="raise predicted"):
        disjoint_maskings(3, 7, 0.6, rng(), predicted=0.5)


def test_the_odd_token_is_kept_and_the_copies_go():
    base = torch.tensor([1.0, 0.0, 0.0])
    tokens = torch.stack([base, 2 * base, torch.tensor([0.0, 1.0, 0.0]), base * 0.5])[None]
    assert least_redundant(tokens, 0.25).tolist() == [[2]]
    assert least_redundant(tokens, 0.5)[0].tolist() == [0, 2]
    assert least_redundant(tokens, 1.0)[0].tolist() == [0, 1, 2, 3]


def test_patches_are_cut_row_by_row_and_put_back():
    images = torch.arange(2 * 2 * 16.0).reshape(2, 2, 4, 4)
    patches = patches_of(images, 2)
    assert patches.shape == (2, 4, 8)
    assert patches[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert torch.equal(images_of(patches, 2), images)


def test_standardised_patches_forget_brightness_and_contrast():
    patches = torch.randn(2, 3, 16, generator=rng())
    made = standardised(patches)
    torch.testing.assert_close(made, standardised(5 * patches + 3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.var(2), torch.ones(2, 3), rtol=1e-4, atol=1e-4)


def turned(degrees, size=12):
    a = math.radians(degrees)
    y, x = torch.meshgrid(
        torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64), indexing="ij"
    )
    return (0.01 * (x * math.cos(a) + y * math.sin(a)))[None, None]


@pytest.mark.parametrize("degrees", [10, 30, 50, 70, 90 + 20, 150, 170, 190])
def test_a_ramp_falls_into_the_bin_of_its_direction_modulo_half_a_turn(degrees):
    found = gradient_histograms(turned(degrees), 4)[0, 0, :, 1, 1]  # a cell away from the border
    expected = torch.zeros(9, dtype=torch.float64)
    expected[int(degrees % 180 // 20)] = 0.02  # central differences are not halved
    torch.testing.assert_close(found, expected)


def test_a_quarter_turn_of_the_picture_turns_the_bins():
    a = gradient_histograms(turned(40), 4, 6)[0, 0, :, 1, 1]
    b = gradient_histograms(turned(40).rot90(1, (2, 3)), 4, 6)[0, 0, :, 1, 1]
    assert a.argmax() == 1
    assert b.argmax() == 4
    torch.testing.assert_close(a.roll(3), b)


def test_borders_have_no_gradient_across_them():
    picture = torch.ones(1, 1, 8, 8)
    assert gradient_histograms(picture, 4).eq(0).all()


def test_targets_have_the_size_they_say_and_hog_sees_unit_pixels(tiny_images):
    data, net = tiny_images(channels=3, size=8), ViT(patch=4, width=8, depth=1, heads=2)
    images = data.normalised(torch.arange(5))
    for target in (Pixels(), Pixels(standardise=True), HOG(), HOG(cells=1, bins=4)):
        made = target.of(images, net, data)
        assert made.shape == (5, 4, target.outputs(net, 3))
    made = HOG().of(images, net, data).unflatten(2, (3, 9, 4))
    torch.testing.assert_close(made.mean(3), torch.zeros(5, 4, 3, 4), atol=1e-5, rtol=0)
    whole = gradient_histograms(data.unit(torch.arange(5)), 2)
    normed = torch.nn.functional.layer_norm(whole.movedim(2, -1), (9,)).movedim(-1, 2)
    torch.testing.assert_close(made[1, 3, 2, :, 0], normed[1, 2, :, 2, 2])
    with pytest.raises(RecipeError, match=r"target\.cells"):
        HOG(cells=3).outputs(net, 1)


def test_pictures_that_patches_do_not_divide_are_padded(tiny_images):
    data, net = tiny_images(size=6), ViT(patch=4, width=8, depth=1, heads=2)
    assert HOG().of(data.normalised(torch.arange(2)), net, data).shape == (2, 4, 36)
    made = Pixels().of(data.normalised(torch.arange(2)), net, data)
    torch.testing.assert_close(images_of(made, 4)[:, :, 1:7, 1:7], data.normalised(torch.arange(2)))

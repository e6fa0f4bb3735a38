"""Matching distances equal their formulas, and keep finite derivatives where a gradient vanishes."""

import math

import pytest
import torch
from torch import nn

from attar.errors import RecipeError
from attar.losses import attention_maps, gradient_distance, mean_embedding_distance, squared_mean_distance


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_mean_embedding_distance_by_hand():
    real = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [2.0, 0.0]]])  # means (2, 3) and (1, 0)
    synthetic = torch.tensor([[[0.0, 3.0]], [[1.0, 5.0]]])
    assert mean_embedding_distance(real, synthetic).item() == 4.0 + 25.0
    assert squared_mean_distance(real.mean(1), synthetic.mean(1)).item() == 29.0


def test_mean_embedding_distance_sends_gradient_to_the_synthetic_side_only():
    real, synthetic = randn(2, 3, 4).requires_grad_(), randn(2, 5, 4, seed=1).requires_grad_()
    mean_embedding_distance(real, synthetic).backward()
    assert real.grad is None
    expected = 2 * (synthetic.mean(1) - real.mean(1)) / 5
    torch.testing.assert_close(synthetic.grad, expected[:, None].expand(2, 5, 4))


def test_mean_embedding_distance_is_zero_for_equal_means_whatever_the_order():
    real = randn(2, 6, 3)
    assert mean_embedding_distance(real, real.flip(1)).item() < 1e-20
    doubled = torch.cat([real, real], 1)
    assert mean_embedding_distance(real, doubled).item() < 1e-20


def test_row_distance_by_hand():
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[6.0, 8.0], [0.0, 2.0], [-1.0, -1.0]])
    assert gradient_distance([a], [b]).item() == pytest.approx(0.0 + 1.0 + 2.0, abs=1e-5)


def test_rows_of_a_convolution_are_its_filters():
    a, b = randn(5, 3, 2, 2), randn(5, 3, 2, 2, seed=1)
    expected = sum(
        1 - torch.dot(x.flatten(), y.flatten()) / (x.norm() * y.norm() + 1e-6) for x, y in zip(a, b, strict=True)
    )
    torch.testing.assert_close(gradient_distance([a], [b]), expected)


def test_vectors_count_nothing_in_rows_but_count_in_mse_and_cosine():
    matrix, other = randn(3, 4), randn(3, 4, seed=1)
    bias = randn(3, seed=2)
    alone = gradient_distance([matrix], [other])
    assert gradient_distance([matrix, bias], [other, -bias]) == alone
    for kind in ("mse", "cosine"):
        assert gradient_distance([matrix, bias], [other, -bias], kind) > gradient_distance([matrix], [other], kind)


def test_rows_and_cosine_ignore_scale_and_mse_does_not():
    a, b = [randn(3, 4), randn(2, 5, seed=1)], [randn(3, 4, seed=2), randn(2, 5, seed=3)]
    scaled = [7 * t for t in b]
    for kind in ("rows", "cosine"):
        assert gradient_distance(a, scaled, kind).item() == pytest.approx(
            gradient_distance(a, b, kind).item(), rel=1e-5
        )
    assert gradient_distance(a, scaled, "mse") > 2 * gradient_distance(a, b, "mse")


def test_mse_and_cosine_are_of_everything_as_one_vector():
    a, b = [randn(3, 4), randn(5, seed=1)], [randn(3, 4, seed=2), randn(5, seed=3)]
    x, y = (torch.cat([t.flatten() for t in side]) for side in (a, b))
    torch.testing.assert_close(gradient_distance(a, b, "mse"), (x - y).square().sum())
    torch.testing.assert_close(gradient_distance(a, b, "cosine"), 1 - x @ y / (x.norm() * y.norm() + 1e-6))
    assert gradient_distance(a, [-t for t in a], "cosine").item() == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["rows", "mse", "cosine"])
def test_gradient_distance_passes_finite_differences_and_stops_at_real(kind):
    a, b = randn(3, 4).requires_grad_(), randn(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gradient_distance([x], [b], kind), a)
    assert torch.autograd.gradgradcheck(lambda x: gradient_distance([x], [b], kind), a)
    gradient_distance([a], [b], kind).backward()
    assert b.grad is None


@pytest.mark.parametrize("kind", ["rows", "cosine"])
def test_zero_rows_have_finite_derivatives_of_both_orders(kind):
    a = torch.zeros(2, 3, dtype=torch.double, requires_grad=True)
    b = torch.zeros(2, 3, dtype=torch.double)
    if kind == "rows":
        b[0] = 1.0  # a zero row against a live one, and one against another zero row
    distance = gradient_distance([a], [b], kind)
    (first,) = torch.autograd.grad(distance, a, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum() + first.sum(), a)
    assert distance.item() == (2.0 if kind == "rows" else 1.0)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_a_dead_filter_leaves_the_pixels_gradient_finite():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias[1] = -1  # never active: its gradient is a zero row on both sides
    pixels = torch.randn(4, 1, 6, 6, requires_grad=True)
    labels = torch.arange(4)
    sides = []
    for images, keep in ((pixels, True), (torch.randn(4, 1, 6, 6), False)):
        loss = nn.functional.cross_entropy(net(images), labels)
        sides.append(torch.autograd.grad(loss, list(net.parameters()), create_graph=keep))
    assert (sides[0][0][1] == 0).all()
    gradient_distance(*sides).backward()
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().sum() > 0


def test_the_gradient_of_one_network_with_itself_is_at_distance_zero():
    a = [randn(3, 4), randn(4, seed=1)]
    assert gradient_distance(a, a, "mse").item() == 0
    assert gradient_distance(a, a).item() == pytest.approx(0, abs=1e-5)
    assert math.isfinite(gradient_distance(a, a, "cosine").item())


def test_mistakes_are_explained():
    a = [randn(3, 4)]
    with pytest.raises(RecipeError, match="did you mean 'rows'"):
        gradient_distance(a, a, "row")
    with pytest.raises(RecipeError, match="same shapes"):
        gradient_distance(a, [randn(4, 3)])
    with pytest.raises(RecipeError, match="nothing to compare"):
        gradient_distance([randn(3)], [randn(3)])


def test_attention_maps_by_hand():
    maps = torch.tensor([[[[1.0, -2.0]], [[2.0, 0.0]]], [[[0.0, 3.0]], [[0.0, 1.0]]]])  # two images, two channels
    fourth = torch.tensor([[17.0, 16.0], [0.0, 82.0]])
    torch.testing.assert_close(attention_maps(maps), fourth / fourth.norm(dim=1, keepdim=True))
    first = torch.tensor([[3.0, 2.0], [0.0, 4.0]])
    torch.testing.assert_close(attention_maps(maps, 1.0), first / first.norm(dim=1, keepdim=True))


def test_attention_maps_forget_strength_and_channel_order_but_not_place():
    maps = randn(3, 4, 5, 6)
    strengths = torch.tensor([0.1, 1.0, 7.0], dtype=torch.double)[:, None, None, None]
    for power in (1.0, 2.0, 3.0, 4.0):
        plain = attention_maps(maps, power)
        assert plain.shape == (3, 30)
        torch.testing.assert_close(plain.norm(dim=1), torch.ones(3, dtype=torch.double))
        torch.testing.assert_close(attention_maps(strengths * maps.flip(1), power), plain)
        assert (attention_maps(maps.flip(3), power) - plain).abs().max() > 0.05


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0, 4.0])
def test_attention_maps_have_right_derivatives_and_finite_ones_where_nothing_is_excited(power):
    maps = randn(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention_maps(x, power), maps)
    dead = torch.zeros(1, 2, 3, 3, requires_grad=True)
    out = attention_maps(dead, power)
    (gradient,) = torch.autograd.grad(out.sum(), dead)
    assert torch.equal(out, torch.zeros(1, 9))
    assert torch.isfinite(gradient).all()


def test_attention_needs_places_and_a_power_of_one_or_more():
    with pytest.raises(RecipeError, match=r"height, width\]; got one of shape \[2, 5\]"):
        attention_maps(randn(2, 5))
    with pytest.raises(RecipeError, match=r"at least 1; got 0\.5"):
        attention_maps(randn(1, 2, 3, 3), 0.5)

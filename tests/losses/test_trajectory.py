"""The formulas of trajectory matching against hand-computed values, limits and finite differences."""

import math

import pytest
import torch

from attar.errors import RecipeError
from attar.losses.trajectory import (
    adaptive_climb,
    balance_factor,
    input_gradient_penalty,
    sharpness_aware_direction,
    trajectory_distance,
)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_distance_is_the_share_of_the_way_that_is_left_squared():
    start, target = vector(1, 2, 3), vector(4, 2, -1)
    assert trajectory_distance(vector(1, 2, 1), target, start).item() == pytest.approx((9 + 0 + 4) / (9 + 0 + 16))
    assert trajectory_distance(start, target, start).item() == 1
    assert trajectory_distance(target, target, start).item() == 0
    half = start + 0.5 * (target - start)
    assert trajectory_distance(half, target, start).item() == pytest.approx(0.25)


def test_distance_sends_gradients_to_the_end_alone():
    end, target, start = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    trajectory_distance(end, target, start).backward()
    expected = 2 * (end - target) / (start - target).square().sum()
    assert torch.allclose(end.grad, expected.detach())
    assert target.grad is None
    assert start.grad is None


def test_vectors_of_different_networks_are_refused():
    with pytest.raises(RecipeError, match="one length"):
        trajectory_distance(torch.zeros(3), torch.zeros(4), torch.zeros(3))


def test_gradient_penalty_of_a_linear_map_by_hand():
    # Σ_k logit_k = 3·x_0 + 4·x_1 in every pixel: the norm over channels is 5, so the penalty is (5 − 1)² everywhere
    images = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weights = vector(3, 4)[:, None, None]
    logits = torch.stack([(0.25 * weights * images).sum((1, 2, 3)), (0.75 * weights * images).sum((1, 2, 3))], 1)
    assert input_gradient_penalty(logits, images).item() == pytest.approx(16)


def test_gradient_penalty_is_one_and_harmless_where_the_network_is_constant():
    images = torch.randn(2, 1, 3, 3, requires_grad=True)
    weight = torch.zeros((), requires_grad=True)
    penalty = input_gradient_penalty((weight * images).sum((2, 3)), images)
    penalty.backward()
    assert penalty.item() == 1
    assert torch.isfinite(weight.grad)


def test_gradient_penalty_has_the_derivative_of_its_finite_difference():
    torch.manual_seed(3)
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    weights = torch.randn(2, 5, dtype=torch.float64)

    def penalty(weights):
        x = images.clone().requires_grad_()
        return input_gradient_penalty(torch.tanh(x).mean((2, 3)) @ weights * 16, x)

    assert torch.autograd.gradcheck(penalty, weights.requires_grad_())


def test_balance_factor_by_hand_and_grows_with_the_epoch():
    assert balance_factor(10, 20) == pytest.approx(math.log(8) / math.log(5))
    assert balance_factor(19, 20) == pytest.approx(math.log(17) / math.log(5))
    assert balance_factor(0, 20) == pytest.approx(math.log(5) / math.log(18))
    factors = [balance_factor(epoch, 20) for epoch in range(20)]
    assert factors == sorted(factors)
    assert factors[9] < 1 < factors[10]


def test_sharpness_aware_direction_keeps_the_climbed_gradient_and_drops_what_is_orthogonal():
    gradient, climbed = vector(3, 4), vector(2, 0)
    # g_⊥ = g − ⟨g, g'⟩ / ‖g'‖² · g' = (0, 4)
    assert torch.equal(sharpness_aware_direction(gradient, climbed, 0.0), climbed)
    assert sharpness_aware_direction(gradient, climbed, 0.3).tolist() == pytest.approx([2, -1.2])
    assert torch.equal(sharpness_aware_direction(3 * climbed, climbed, 0.7), climbed)


def test_adaptive_climb_has_the_radius_in_units_of_the_weights():
    weights, gradient = vector(2, -1, 0.5), vector(1, 3, -2)
    # |w|⊙g = (2, 3, −1), its norm √14; w²⊙g = (4, 3, −0.5)
    step = adaptive_climb(weights, gradient, 0.01)
    assert step.tolist() == pytest.approx([0.01 * v / math.sqrt(14) for v in (4, 3, -0.5)])
    assert (step / weights).norm().item() == pytest.approx(0.01)
    assert step @ gradient > 0  # it climbs

"""Barlow Twins: by hand, invariant to shift and scale, least for views that agree and features that do not."""

import pytest
import torch

from attar.errors import RecipeError
from attar.losses.redundancy import barlow_twins


def test_correlations_by_hand():
    """First features agree, second ones are opposite, and the two are uncorrelated: 0 + (1 + 1)²."""
    a = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    b = a * torch.tensor([1.0, -1.0])
    assert float(barlow_twins(a, a)) == pytest.approx(0.0, abs=1e-5)
    assert float(barlow_twins(a, b)) == pytest.approx(4.0, abs=1e-5)


def test_features_that_say_the_same_are_charged_by_the_weight():
    """Two equal features in both views: C is all ones, so both entries off the diagonal count λ."""
    a = torch.tensor([[1.0], [-1.0], [3.0]]).expand(3, 2)
    assert float(barlow_twins(a, a, off_diagonal=0.3)) == pytest.approx(0.6, abs=1e-4)
    assert float(barlow_twins(a, a)) == pytest.approx(0.01, abs=1e-4)


def test_shifts_and_positive_scales_of_a_feature_change_nothing():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 20, 4, generator=rng)
    scale, shift = torch.tensor([2.0, 0.5, 10.0, 1.0]), torch.tensor([1.0, 0.0, -3.0, 2.0])
    torch.testing.assert_close(barlow_twins(a, b), barlow_twins(a * scale + shift, b))
    torch.testing.assert_close(barlow_twins(a, b), barlow_twins(b, a))


def test_a_constant_feature_costs_one_and_has_finite_gradients():
    a = torch.tensor([[1.0, 5.0], [-1.0, 5.0]], requires_grad=True)
    loss = barlow_twins(a, a)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0, abs=1e-4)
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((1, 2), (1, 2)), ((3,), (3,))])
def test_views_that_do_not_fit_are_refused(shapes):
    with pytest.raises(RecipeError, match="n at least 2"):
        barlow_twins(*map(torch.ones, shapes))

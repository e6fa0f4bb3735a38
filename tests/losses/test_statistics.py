"""Batch-norm statistics: by hand, separate weights, no squares, and gradients that flow to the images alone."""

import math

import pytest
import torch

from attar.losses.statistics import input_statistics, statistics_distance


def test_statistics_are_over_images_and_places_and_the_variance_is_biased():
    x = torch.tensor([[[[0.0, 2.0]], [[1.0, 1.0]]], [[[4.0, 6.0]], [[1.0, 5.0]]]])  # [2, 2, 1, 2]
    mean, variance = input_statistics(x)
    assert mean.tolist() == [3.0, 2.0]
    assert variance.tolist() == [5.0, 3.0]


def test_vectors_and_half_precision_have_statistics_too():
    mean, variance = input_statistics(torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=torch.bfloat16))
    assert (mean.tolist(), variance.tolist(), mean.dtype) == ([2.0, 0.0], [1.0, 0.0], torch.float32)


def layers():
    """Two layers: mean distances 5 and 1, variance distances 2 and 3."""
    zeros = torch.zeros(2)
    found = [(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])), (torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0]))]
    return found, [(zeros, zeros), (zeros, zeros)]


@pytest.mark.parametrize(
    ("first", "ratio", "expected"), [(1.0, 1.0, 11.0), (10.0, 1.0, 74.0), (10.0, 11.0, 304.0), (1.0, 0.0, 6.0)]
)
def test_lengths_are_summed_with_the_first_layer_and_the_variances_weighted(first, ratio, expected):
    found, wanted = layers()
    got = statistics_distance(found, wanted, first_weight=first, variance_weight=ratio)
    assert float(got) == pytest.approx(expected)


def test_the_defaults_are_sre2ls_and_lengths_are_not_squared():
    found, wanted = layers()
    doubled = [(2 * mean, 2 * variance) for mean, variance in found]
    assert float(statistics_distance(found, wanted)) == pytest.approx(74.0)
    assert float(statistics_distance(doubled, wanted)) == pytest.approx(148.0)


def test_the_gradient_reaches_the_images_and_pulls_them_towards_the_running_statistics():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    wanted = (torch.ones(3, dtype=torch.float64, requires_grad=True), torch.full((3,), 2.0, dtype=torch.float64))
    torch.autograd.gradcheck(lambda x: statistics_distance([input_statistics(x)], [wanted]), x)
    loss = statistics_distance([input_statistics(x)], [wanted])
    loss.backward()
    assert wanted[0].grad is None
    nearer = statistics_distance([input_statistics(x.detach() - 0.1 * x.grad)], [wanted])
    assert float(nearer.detach()) < float(loss.detach())


def test_equal_statistics_are_at_zero_with_a_finite_gradient():
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    wanted = tuple(value.detach() for value in input_statistics(x))
    loss = statistics_distance([input_statistics(x)], [wanted])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.isfinite(x.grad).all()


def test_layers_must_pair_up():
    found, wanted = layers()
    with pytest.raises(ValueError, match="zip"):
        statistics_distance(found, wanted[:1])
    assert math.isfinite(float(statistics_distance(found[:1], wanted[:1])))

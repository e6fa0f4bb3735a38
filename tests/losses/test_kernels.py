"""Kernels: moments of ReLU by sampling and at their limits, and tangent kernels against very wide networks."""

import math

import pytest
import torch
from torch import nn

from attar.losses.kernels import convolutional_ntk, feature_kernel, fully_connected_ntk, relu_moments


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_features_give_inner_products_and_a_constant_feature_adds_one():
    a, b = rand(3, 4), rand(2, 4, seed=1)
    torch.testing.assert_close(feature_kernel(a.float(), b.float()), a.float().double() @ b.float().double().T)
    ones = [torch.cat([x, torch.ones(len(x), 1)], 1) for x in (a, b)]
    torch.testing.assert_close(feature_kernel(a, b, bias=True), ones[0] @ ones[1].T)


@pytest.mark.parametrize("cross", [-1.5, -0.4, 0.0, 0.7, 1.9])
def test_moments_are_those_of_sampled_pairs(cross):
    covariance = torch.tensor([[2.0, cross], [cross, 3.0]], dtype=torch.float64)
    pairs = rand(400_000, 2) @ torch.linalg.cholesky(covariance).T
    value, slope = relu_moments(*(torch.tensor(x, dtype=torch.float64) for x in (cross, 2.0, 3.0)))
    assert float(value) == pytest.approx(pairs.clamp_min(0).prod(1).mean().item(), abs=0.01)
    assert float(slope) == pytest.approx((pairs > 0).double().prod(1).mean().item(), abs=0.003)


def test_moments_of_equal_opposite_and_independent_variables():
    cross = torch.tensor([4.0, -4.0, 0.0], dtype=torch.float64)
    four = torch.full((3,), 4.0, dtype=torch.float64)
    value, slope = relu_moments(cross, four, four)
    assert value.tolist() == [2.0, 0.0, pytest.approx(4 / (2 * math.pi))]
    assert slope.tolist() == [0.5, 0.0, 0.25]


def test_derivatives_are_finite_at_equal_and_opposite_variables():
    cross = torch.tensor([4.0, -4.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    left = torch.tensor([4.0, 4.0, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    value, slope = relu_moments(cross, left, left)
    (value + slope).sum().backward()
    assert torch.isfinite(cross.grad).all()
    assert torch.isfinite(left.grad).all()
    assert cross.grad[0] == 0.5  # the derivative of the first moment along the covariance is the second


def tangents(network, images):
    """The empirical tangent kernel of a network of one output."""
    rows = []
    for image in images:
        gradients = torch.autograd.grad(network(image[None]).sum(), list(network.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    rows = torch.stack(rows)
    return rows @ rows.T


class Scaled(nn.Module):
    """A layer √(w / fan-in) · W x + √b · β with standard normal W and β."""

    def __init__(self, apply, shape, outputs, w=2.0, b=0.01):
        super().__init__()
        self.apply_layer, self.scale, self.shift = apply, (w / math.prod(shape[1:])) ** 0.5, b**0.5
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return self.apply_layer(x, self.scale * self.weight, self.shift * self.bias)


def wide(layers):
    """Return the mean empirical tangent kernel of eight networks of these layers."""
    torch.manual_seed(0)
    return lambda images: torch.stack([tangents(nn.Sequential(*layers()), images) for _ in range(8)]).mean(0)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_tangent_kernel_is_that_of_very_wide_networks(depth):
    images, width = rand(4, 6).float(), 1000

    def layers():
        shapes = [(width, 6), *[(width, width)] * (depth - 1)]
        hidden = [(Scaled(nn.functional.linear, shape, width), nn.ReLU()) for shape in shapes]
        return [*(layer for pair in hidden for layer in pair), Scaled(nn.functional.linear, (1, width), 1)]

    expected = fully_connected_ntk(images, images, depth=depth).float()
    torch.testing.assert_close(wide(layers)(images), expected, rtol=0.06, atol=0.06)


def test_the_convolutional_tangent_kernel_is_that_of_very_wide_convnets():
    images, width = rand(3, 2, 5, 5).float(), 200

    def convolution(x, weight, bias):
        return nn.functional.conv2d(x, weight, bias, padding=1)

    def layers():
        blocks = [
            (Scaled(convolution, (width, before, 3, 3), width), nn.ReLU(), nn.AvgPool2d(2)) for before in (2, width)
        ]
        linear = Scaled(nn.functional.linear, (1, width), 1)
        return [*(layer for block in blocks for layer in block), nn.Flatten(), linear]

    expected = convolutional_ntk(images, images, depth=2).float()
    torch.testing.assert_close(wide(layers)(images), expected, rtol=0.06, atol=0.06)


@pytest.mark.parametrize("kernel", [fully_connected_ntk, convolutional_ntk])
def test_kernels_are_symmetric_positive_and_differentiable(kernel):
    images, others = rand(3, 1, 4, 4), rand(2, 1, 4, 4, seed=1)
    whole = kernel(torch.cat([images, others]), torch.cat([images, others]), depth=2)
    torch.testing.assert_close(whole, whole.T)
    assert torch.linalg.eigvalsh(whole).min() > 0
    torch.testing.assert_close(kernel(images, others, depth=2), whole[:3, 3:])
    moved = images.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernel(x, others, depth=2), moved, atol=1e-4)


def test_the_gradient_of_a_kernel_of_images_with_themselves_is_finite():
    images = rand(3, 1, 4, 4).requires_grad_()
    for kernel in (fully_connected_ntk, convolutional_ntk):
        (gradient,) = torch.autograd.grad(kernel(images, images, depth=2).sum(), images)
        assert torch.isfinite(gradient).all()

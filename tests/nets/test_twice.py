"""Layers with second derivatives written out: held against finite differences and against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from attar.nets import ConvNet
from attar.nets.convnet import HalfAverage
from attar.nets.twice import TwiceConv2d, TwiceHalfAverage, TwiceInstanceNorm, twice_differentiable


def network(norm: str = "instance", size: int = 7) -> nn.Module:
    torch.manual_seed(0)
    made = ConvNet(depth=2, width=8, norm=norm).build(channels=3, size=size, classes=4).double()
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)  # no weight of a norm is 1
    return made


def second(module: nn.Module, x: torch.Tensor, first_in: str = "all") -> list[torch.Tensor]:
    """Return the gradients, in images and weights, of a function of the gradients in all of them or some."""
    x = x.clone().requires_grad_()
    learned = [x, *module.parameters()]
    asked = {"all": learned, "weights": learned[1:], "images": learned[:1]}[first_in]
    loss = module(x).square().sum().sin()
    first = torch.autograd.grad(loss, asked, create_graph=True)
    weights = [torch.linspace(1, 2, gradient.numel()).view_as(gradient) for gradient in first]
    total = sum((gradient.square() * weight).sum() for gradient, weight in zip(first, weights, strict=True))
    return list(torch.autograd.grad(total, learned))


def same(found: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float) -> None:
    largest = max(float(values.abs().max()) for values in wanted)  # some are 0 but for rounding: a bias under a norm
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 3, 2, 2)])
def test_the_norm_has_the_derivatives_of_finite_differences(shape):
    torch.manual_seed(0)
    norm = TwiceInstanceNorm(shape[1], shape[1]).double()
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    given = (x, torch.randn(shape[1]).double().requires_grad_(), torch.randn(shape[1]).double().requires_grad_())

    def call(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [4, 8])  # a narrow input has another way
@pytest.mark.parametrize(
    "settings", [{"padding": 1}, {"stride": 2}, {"dilation": (2, 1)}, {"padding": (0, 2), "groups": 2}]
)
def test_the_convolution_has_the_derivatives_of_finite_differences(settings, channels, bias):
    torch.manual_seed(0)
    layer = TwiceConv2d(channels, 4, 3, bias=bias, **settings).double()
    x = torch.randn(2, channels, 6, 5, dtype=torch.double, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    given = (x, *(parameter.detach().clone().requires_grad_() for parameter in layer.parameters()))

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


@pytest.mark.parametrize("size", [(4, 6), (5, 4), (4, 5)])
def test_pooling_has_the_derivatives_of_finite_differences(size):
    x = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(TwiceHalfAverage()(x), HalfAverage()(x))
    assert torch.autograd.gradcheck(TwiceHalfAverage(), (x,))
    assert torch.autograd.gradgradcheck(TwiceHalfAverage(), (x,))


@pytest.mark.parametrize("first_in", ["all", "weights", "images"])
@pytest.mark.parametrize(("norm", "size"), [("instance", 7), ("instance", 8), ("batch", 8), ("group", 8), ("none", 8)])
def test_a_network_has_the_second_derivatives_that_torch_takes(norm, size, first_in):
    plain = network(norm, size)
    x = torch.randn(5, 3, size, size, dtype=torch.double)
    same(second(twice_differentiable(copy.deepcopy(plain)), x, first_in), second(plain, x, first_in), 1e-9)


def test_a_constant_map_and_a_weight_of_zero_have_finite_derivatives():
    plain = nn.GroupNorm(2, 2).double()
    plain.weight.data[0] = 0.0
    x = torch.randn(3, 2, 4, 4, dtype=torch.double)
    x[0] = 1.0
    same(second(twice_differentiable(copy.deepcopy(plain)), x), second(plain, x), 1e-6)


def test_only_layers_that_are_alike_are_replaced():
    made = twice_differentiable(network())
    assert sum(type(layer) is TwiceInstanceNorm for layer in made.modules()) == 2
    assert sum(type(layer) is TwiceConv2d for layer in made.modules()) == 2
    others = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, padding_mode="reflect", padding=1))
    assert not any(type(layer) is TwiceConv2d for layer in twice_differentiable(others).modules())


def test_autocast_keeps_its_own_convolution():
    layer = twice_differentiable(nn.Sequential(nn.Conv2d(8, 8, 3)))
    x = torch.randn(2, 8, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer[0].weight.grad is not None

"""Derivatives in forward mode are PyTorch's own, whichever argument moves, and constants cost nothing."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from attar.diffusion.pushforward import pushed


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


C = randn(3, 4, 6, 6, seed=9)
ROW = randn(6, seed=10)
FUNCTIONS = {
    "sums": lambda x: (x + C) * (1 - x) + (C - x) + (x - C) + torch.sub(C, x) + torch.add(ROW, x) + (2 + x),
    "sum that is wider": lambda x: x[:1] + C,
    "difference that is wider": lambda x: C - x[:1],
    "sum with a factor": lambda x: torch.add(x, C, alpha=3.0) + torch.add(C, x, alpha=3.0),
    "products": lambda x: x * 2.0 * C * x + torch.mul(C, x) + ROW.mul(x),
    "quotients": lambda x: x / C + 1.0 / x + C / x + x / 3,
    "rounded": lambda x: x * torch.div(x, 0.5, rounding_mode="floor"),
    "matrices": lambda x: x @ C + C @ x + x.transpose(-1, -2) @ x + torch.matmul(x, ROW[:, None]),
    "types": lambda x: (x.float() * torch.tensor(2.0, dtype=torch.double) + C[0, 0, 0, 0]).double() + x.float(),
    "convolution": lambda x: functional.conv2d(x, randn(6, 2, 3, 3), randn(6), 2, 1, 1, 2),
    "convolution, named": lambda x: functional.conv2d(x, randn(6, 4, 3, 3), bias=randn(6), padding=1),
    "convolution in one dimension": lambda x: functional.conv1d(x.flatten(2), randn(5, 4, 3), randn(5)),
    "convolution in three": lambda x: functional.conv3d(x[:, None], randn(2, 1, 3, 3, 3)),
    "convolution with a moving weight": lambda x: functional.conv2d(C, x, x[:, 0, 0, 0]),
    "linear": lambda x: functional.linear(x, randn(5, 6), randn(5)) + functional.linear(x, randn(5, 6)),
    "group norm": lambda x: functional.group_norm(x.transpose(2, 3), 2, randn(4), randn(4)),
    "group norm of points": lambda x: functional.group_norm(x[:, :, 0, 0], 2, eps=0.1),
    "layer norm": lambda x: functional.layer_norm(x, (6, 6), randn(6, 6), randn(6, 6)),
    "layer norm, named": lambda x: functional.layer_norm(x, (6,), eps=0.1),
    "what has no rule": lambda x: torch.sin(x).cumsum(1) * functional.silu(x).softmax(-1),
    "attention": lambda x: functional.scaled_dot_product_attention(x, C, x),
    "nothing that moves": lambda x: C * 2 + functional.group_norm(C, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_derivative_is_that_of_pytorch(name):
    x, dx = randn(3, 4, 6, 6, seed=1), randn(3, 4, 6, 6, seed=2)
    value, derivative = pushed(FUNCTIONS[name], (x,), (dx,))
    with sdpa_kernel(SDPBackend.MATH):
        expected, tangent = torch.func.jvp(FUNCTIONS[name], (x,), (dx,))
    assert derivative.dtype == value.dtype == expected.dtype
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(derivative, tangent)
    assert not value.requires_grad
    assert not derivative.requires_grad


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.done = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.done[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def test_constants_have_no_derivatives_that_are_computed():
    x, dx = randn(2, 4, 6, 6, seed=1), randn(2, 4, 6, 6, seed=2)
    layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 4), nn.LayerNorm(4))
    layers.double()
    with Counted() as counted:
        pushed(lambda x: 2 * layers(1 - 0.5 * x) / 3 + layers[-1].bias, (x,), (dx,))
    done = counted.done
    assert done["_efficientzerotensor"] == 0
    assert done["convolution"] == 2
    assert done["addmm"] + done["mm"] == 2
    assert done["native_group_norm"] == done["native_layer_norm"] == 1


def test_half_precision_moves_in_half_precision():
    layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.LayerNorm(64))
    x, dx = randn(2, 4, 6, 6, seed=1).float(), randn(2, 4, 6, 6, seed=2).float()
    exact = pushed(layers, (x,), (dx,))[1]
    with torch.autocast("cpu", torch.bfloat16):
        value, derivative = pushed(layers, (x,), (dx,))
    assert value.dtype == derivative.dtype
    torch.testing.assert_close(derivative.float(), exact, rtol=0, atol=0.03 * float(exact.abs().max()))

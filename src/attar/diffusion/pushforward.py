"""Derivatives in forward mode, with the rules of frequent operations written out.

PyTorch's own rules take a constant, be it a weight or a number, for something whose derivative is zeros: a convolution
is done thrice instead of twice, a product with a number takes thirty times as long. Norms are taken apart besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Ruled = tuple[Tensor, Callable[[Tensor], Tensor]]  # a value, and its derivative by that of the argument that moves
Rule = Callable[..., Ruled]


def pushed(function: Callable[..., Tensor], at: Sequence[Tensor], along: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return function(*at) and its derivative in the direction of `along`, which has the shapes of `at`.

    Neither has a gradient. What has no rule here has PyTorch's; attention is taken apart, since fused it has none.

    Raises:
        NotImplementedError: an operation that has none there.
    """
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _Written():
        made = function(*(forward_ad.make_dual(x, dx) for x, dx in zip(at, along, strict=True)))
        value, derivative = forward_ad.unpack_dual(made)
        return value, torch.zeros_like(value) if derivative is None else derivative


class _Written(TorchFunctionMode):
    """Do operations by the rules of this file where just one of their arguments moves."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        rules = RULES.get(func)
        if rules is not None and len(args) > 1 and (func in LAYERS or not named):
            moving = [place for place, given in enumerate([*args, *named.values()]) if _moves(given)]
            if len(moving) == 1 and (rule := rules.get(moving[0])):
                x, dx = forward_ad.unpack_dual(args[moving[0]])
                value, push = rule(*args[: moving[0]], x, *args[moving[0] + 1 :], **named)
                return forward_ad.make_dual(value, push(dx))
        return func(*args, **named)


def _moves(given: Any) -> bool:
    return isinstance(given, Tensor) and forward_ad.unpack_dual(given).tangent is not None


def _linear(op: Any, x: Tensor, y: Any) -> Ruled:
    """What is linear in its first argument, which moves."""
    return op(x, y), lambda dx: op(dx, y)


def _product(op: Any, x: Tensor, y: Tensor) -> Ruled:
    """What is linear in its second argument, which moves."""
    return op(x, y), lambda dy: op(x, dy)


def _sum(op: Any, x: Any, y: Any) -> Ruled:
    """A sum, or a difference whose first term moves."""
    value = op(x, y)
    return value, lambda moved: moved.to(value).expand_as(value)


def _difference(op: Any, x: Any, y: Any) -> Ruled:
    """A difference whose subtrahend moves."""
    value = op(x, y)
    return value, lambda moved: -moved.to(value).expand_as(value)


def _layer(op: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **named: Any) -> Ruled:
    """A linear layer or convolution."""
    return op(x, weight, bias, *how, **named), lambda dx: op(dx, weight, None, *how, **named)


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Ruled:
    n, channels = x.shape[:2]
    x, size = x.to(x if weight is None else weight).contiguous(), x.numel() // (n * channels)
    value, mean, scale = torch.ops.aten.native_group_norm(x, weight, bias, n, channels, size, groups, eps)
    mean, scale = mean[..., None], scale[..., None]

    def push(dx: Tensor) -> Tensor:
        unit = torch.addcmul(-mean * scale, x.view(n, groups, -1), scale)
        moved = _normed(unit, dx.to(x).reshape(n, groups, -1)).view(n, groups, channels // groups, -1)
        gain = scale[..., None] if weight is None else scale[..., None] * weight.view(groups, -1, 1)
        return (moved * gain).view_as(x)

    return value, push


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Ruled:
    x, last = x.to(x if weight is None else weight), -len(shape)
    value, mean, scale = torch.ops.aten.native_layer_norm(x, shape, weight, bias, eps)

    def push(dx: Tensor) -> Tensor:
        unit = torch.addcmul(-mean * scale, x, scale).flatten(last)
        moved = _normed(unit, dx.to(x).flatten(last)).view_as(x) * scale
        return moved if weight is None else moved * weight

    return value, push


def _normed(unit: Tensor, dx: Tensor) -> Tensor:
    """Return d unit · deviation, where `unit` is x with mean 0 and deviation 1 over the last dimension."""
    shared = (unit * dx).mean(-1, keepdim=True)
    return torch.addcmul(dx - dx.mean(-1, keepdim=True), unit, shared, value=-1)


def _arithmetic() -> Iterator[tuple[Any, dict[int, Rule]]]:
    for kind in (torch, Tensor):
        add, sub, mul, div, matmul = kind.add, kind.sub, kind.mul, kind.div, kind.matmul
        yield add, {0: partial(_sum, add), 1: partial(_sum, add)}
        yield sub, {0: partial(_sum, sub), 1: partial(_difference, sub)}
        yield mul, {0: partial(_linear, mul), 1: partial(_product, mul)}
        yield div, {0: partial(_linear, div)}
        yield matmul, {0: partial(_linear, matmul), 1: partial(_product, matmul)}
    yield Tensor.__rsub__, {0: partial(_difference, Tensor.__rsub__)}


CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
ARITHMETIC = dict(_arithmetic())  # operation to rules by the place of the argument that moves
LAYERS: dict[Any, dict[int, Rule]] = {
    **{op: {0: partial(_layer, op)} for op in (functional.linear, *CONVOLUTIONS)},
    functional.group_norm: {0: _group_norm},
    functional.layer_norm: {0: _layer_norm},
}
RULES = ARITHMETIC | LAYERS

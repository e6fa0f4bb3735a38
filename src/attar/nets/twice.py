"""Convolution, instance norm and pooling with second derivatives written out, for networks differentiated twice.

torch takes the second derivative of a group norm through a dozen elementwise operations, which cost more than the
convolutions of a small network, and that of a convolution one factor at a time; the gradient in an image, of one
channel or three, costs as much as one in sixteen. With these layers a step of trajectory matching takes three quarters
of its time. x̂ = (x − μ) r has the derivative r P with P h = h − mean h − x̂ mean(h x̂), and the derivative of that has
the same means.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attar.nets.convnet import HalfAverage

NARROW = 8  # channels below which a product of matrices gives the gradient in a convolution's input sooner


class TwiceConv2d(nn.Conv2d):
    """`nn.Conv2d` whose gradient may be differentiated once more, and not twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Return W * x + b."""
        if torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling():  # they know torch's own
            return super().forward(x)
        how = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        y: Tensor = _Conv.apply(x, self.weight, self.bias, how)
        return y


class TwiceInstanceNorm(nn.GroupNorm):
    """`nn.GroupNorm(C, C)` of `[n, C, …]`, whose gradient may be differentiated once more, and not twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Return γ x̂ + β."""
        if x.dtype != self.weight.dtype or torch.compiler.is_compiling():  # autocast knows torch's own, too
            return super().forward(x)
        y: Tensor = _Norm.apply(x, self.weight, self.bias, self.eps)
        return y


class TwiceHalfAverage(HalfAverage):
    """`HalfAverage` whose gradient writes every place once; it may be differentiated any number of times."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of every 2×2 square; an odd last row or column is left out."""
        if torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = _Pool.apply(x, super().forward)
        return y


def twice_differentiable(module: nn.Module) -> nn.Module:
    """Put these layers in the place of their like inside a module, and return it; names and parameters stay."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _pads_with_zeros(layer):
            layer.__class__ = TwiceConv2d
        elif type(layer) is nn.GroupNorm and layer.num_groups == layer.num_channels and layer.affine:
            layer.__class__ = TwiceInstanceNorm
        elif type(layer) is HalfAverage:
            layer.__class__ = TwiceHalfAverage
    return module


def _pads_with_zeros(layer: nn.Conv2d) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Return what torch's kernels are told of a map: samples, channels, places, groups."""
    n, channels = x.shape[:2]
    return n, channels, x.numel() // (n * channels), channels


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.biased = how, bias is not None
        y: Tensor = torch.ops.aten.convolution(x, weight, bias, *how)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        asked = ctx.needs_input_grad[0]
        to_x, to_weight, to_bias = _ConvGradient.apply(gradients[0], *ctx.saved_tensors, ctx.how, asked)
        return to_x, to_weight, to_bias if ctx.biased else None, None


class _ConvGradient(torch.autograd.Function):
    """(dx, dW, db) of a gradient g in y, linear in g and each of x and W; `asked` says whether dx is wanted."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:
        g, x, weight, ctx.how, asked = given
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        narrow = _narrow(x, ctx.how)
        wanted = [asked and not narrow, True, True]
        to_x, *others = torch.ops.aten.convolution_backward(g, x, weight, [len(weight)], *ctx.how, wanted)
        return _to_input(g, x, weight, ctx.how) if asked and narrow else to_x, *others

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor | None, s: Tensor | None, t: Tensor | None) -> Any:
        """Return the gradients of <u, dx> + <s, dW> + <t, db> in g, x and W."""
        (g, x, weight), how = ctx.saved_tensors, ctx.how
        s = torch.zeros_like(weight) if s is None else s
        to_g = torch.ops.aten.convolution(x, s, t, *how)
        to_x = _to_input(g, x, s, how) if ctx.needs_input_grad[1] else None
        if u is None:
            return to_g, to_x, None, None, None
        to_g += torch.ops.aten.convolution(u, weight, None, *how)
        _, to_weight, _ = torch.ops.aten.convolution_backward(g, u, weight, None, *how, [False, True, False])
        return to_g, to_x, to_weight, None, None


def _narrow(x: Tensor, how: tuple[Any, ...]) -> bool:
    return x.shape[1] < NARROW and how[-1] == 1 and x.device.type == "cpu"


def _to_input(g: Tensor, x: Tensor, weight: Tensor, how: tuple[Any, ...]) -> Tensor:
    """Return the gradient of <g, W * x> in x."""
    if not _narrow(x, how):
        to_x: Tensor = torch.ops.aten.convolution_backward(g, x, weight, None, *how, [True, False, False])[0]
        return to_x
    stride, padding, dilation, *_ = how
    columns = weight.flatten(1).T.expand(len(g), -1, -1).bmm(g.flatten(2))
    return nn.functional.fold(columns, x.shape[2:], weight.shape[2:], dilation, padding, stride)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y, mean, scale = torch.ops.aten.native_group_norm(x, weight, bias, *_sizes(x), eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return *_NormGradient.apply(gradients[0], *ctx.saved_tensors), None


class _NormGradient(torch.autograd.Function):
    """(dx, dγ, dβ) = (γ r P g, Σ g x̂, Σ g)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, *saved: Tensor) -> Any:
        g, (x, weight, mean, scale) = g.contiguous(), saved
        ctx.save_for_backward(g, *saved)
        return torch.ops.aten.native_group_norm_backward(g, x, mean, scale, weight, *_sizes(x), [True, True, True])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients of <u, dx> + <s, dγ> + <t, dβ> in g, x and γ."""
        g, x, weight, mean, scale = ctx.saved_tensors
        shape, (n, channels) = g.shape, g.shape[:2]
        u, g, x = (part.reshape(n * channels, -1) for part in (gradients[0], g, x))
        mean, r = mean.view(-1, 1), scale.view(-1, 1)
        s, t, weight = (part.repeat(n)[:, None] for part in (*gradients[1:], weight))
        u_mean, g_mean = u.mean(1, keepdim=True), g.mean(1, keepdim=True)
        ux, gx = ((part * x).mean(1, keepdim=True) for part in (u, g))
        ux, gx = r * (ux - mean * u_mean), r * (gx - mean * g_mean)  # with x̂
        inner = (u * g).mean(1, keepdim=True) - u_mean * g_mean - ux * gx  # mean of u P g
        # γ r P u + s x̂ + t
        by_x = (s - weight * r * ux) * r
        to_g = (x * by_x).addcmul_(u, weight * r).add_(t - weight * r * u_mean - by_x * mean)
        # r P w − r² x̂ γ mean(u P g), where w = s g − γ r (mean(g x̂) u + mean(u x̂) g) is the gradient in x̂
        by_u, by_g = -weight * r * gx, s - weight * r * ux
        by_x = -r.square() * (by_u * ux + by_g * gx + weight * r * inner)
        to_x = (x * by_x).addcmul_(u, r * by_u).addcmul_(g, r * by_g)
        to_x.add_(-r * (by_u * u_mean + by_g * g_mean) - by_x * mean)
        to_weight = (r * inner).view(n, channels).sum(0) * x.shape[1]
        return to_g.view(shape), to_x.view(shape), to_weight, None, None


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: Any) -> Tensor:
        ctx.shape, ctx.pool = x.shape, pool
        y: Tensor = pool(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Spread.apply(gradients[0], ctx.shape, ctx.pool), None


class _Spread(torch.autograd.Function):
    """The adjoint of pooling: a quarter of every value at each place of its square."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, shape: torch.Size, pool: Any) -> Tensor:
        ctx.pool = pool
        height, width = 2 * g.shape[2], 2 * g.shape[3]
        whole = g.new_empty(shape) if (height, width) == shape[2:] else g.new_zeros(shape)
        quarter = g * 0.25
        for row in (0, 1):
            for column in (0, 1):
                whole[:, :, row:height:2, column:width:2] = quarter
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Pool.apply(gradients[0], ctx.pool), None, None

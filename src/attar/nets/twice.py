"""Instance norm and pooling with second derivatives written out, for networks that are differentiated twice.

torch takes the second derivative of a group norm through a dozen elementwise operations, which cost more than the
convolutions of a small network: with these layers a step of trajectory matching takes seven eighths of its time. x̂ =
(x − μ) r has the derivative r P with P h = h − mean h − x̂ mean(h x̂), and the derivative of that has the same means.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attar.nets.convnet import HalfAverage


class TwiceInstanceNorm(nn.GroupNorm):
    """`nn.GroupNorm(C, C)` of `[n, C, …]`, whose gradient may be differentiated once more, and not twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Return γ x̂ + β."""
        if x.dtype != self.weight.dtype:  # autocast knows torch's own
            return super().forward(x)
        y: Tensor = _Norm.apply(x, self.weight, self.bias, self.eps)
        return y


class TwiceHalfAverage(HalfAverage):
    """`HalfAverage` whose gradient writes every place once; it may be differentiated any number of times."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of every 2×2 square; an odd last row or column is left out."""
        y: Tensor = _Pool.apply(x, super().forward)
        return y


def twice_differentiable(module: nn.Module) -> nn.Module:
    """Put these layers in the place of their like inside a module, and return it; names and parameters stay."""
    for layer in module.modules():
        if type(layer) is nn.GroupNorm and layer.num_groups == layer.num_channels and layer.affine:
            layer.__class__ = TwiceInstanceNorm
        elif type(layer) is HalfAverage:
            layer.__class__ = TwiceHalfAverage
    return module


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Return what torch's kernels are told of a map: samples, channels, places, groups."""
    n, channels = x.shape[:2]
    return n, channels, x.numel() // (n * channels), channels


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

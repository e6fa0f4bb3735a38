"""Kernels of ridge regression: inner products of features, and the tangent kernels of infinitely wide networks.

Jacot et al. 2018 (arXiv 1806.07572), in their parameterisation: a layer is √(w / fan-in) · W x + √β · z with standard
normal W and z. The moments of ReLU are the arc-cosine kernels of Cho & Saul (2009). All kernels are in float64, since
the ridge is a millionth of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from attar.losses.numerics import positive

EDGE = 1e-12  # correlations this near to ±1 count as such: the angle has no derivative there


def feature_kernel(a: Tensor, b: Tensor, *, bias: bool = False) -> Tensor:
    """Return the inner products `[m, n]` of features `[m, f]` and `[n, f]`, in float64.

    With `bias` a constant feature of 1 is appended to both.
    """
    products = a.double() @ b.double().T
    return products + 1 if bias else products


def relu_moments(cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[max(u, 0) max(v, 0)] and E[1(u > 0) 1(v > 0)] of (u, v) ~ N(0, [[left, cross], [cross, right]]).

    With θ the angle of cos θ = cross / √(left · right): √(left · right) (sin θ + (π − θ) cos θ) / 2π and (π − θ) / 2π.
    All shapes broadcast. Derivatives are finite at θ = 0 and π, and those along θ count as 0 there.
    """
    scale = (left * right).clamp_min(torch.finfo(cross.dtype).tiny).sqrt()
    cosine = (cross / scale).clamp(-1, 1)
    inside = cosine.clamp(EDGE - 1, 1 - EDGE)
    sine = (1 - inside.square()).sqrt().masked_fill(cosine.abs() > 1 - EDGE, 0)
    angle = inside.acos().masked_fill(cosine > 1 - EDGE, 0).masked_fill(cosine < EDGE - 1, math.pi)
    value = scale * (sine + (math.pi - angle) * cosine) / (2 * math.pi)
    return value, (math.pi - angle) / (2 * math.pi)


def fully_connected_ntk(
    a: Tensor, b: Tensor, *, depth: int, weight_variance: float = 2.0, bias_variance: float = 0.01
) -> Tensor:
    """Return the tangent kernel `[m, n]` of an infinitely wide ReLU network of `depth` hidden layers.

    `a` `[m, …]` and `b` `[n, …]` are flattened to D numbers. Θ¹ = Σ¹ = w ⟨x, x'⟩ / D + β, with w and β the variances;
    then Σˡ⁺¹ = w E[relu relu] + β and Θˡ⁺¹ = Σˡ⁺¹ + w Θˡ E[step step], with the moments of ReLU under Σˡ.
    """
    a, b = a.double().flatten(1), b.double().flatten(1)
    cross = weight_variance * (a @ b.T) / a.shape[1] + bias_variance
    left = (weight_variance * a.square().mean(1) + bias_variance)[:, None]
    right = (weight_variance * b.square().mean(1) + bias_variance)[None]
    tangent = cross
    for _ in range(depth):
        value, slope = relu_moments(cross, left, right)
        cross = weight_variance * value + bias_variance
        tangent = cross + weight_variance * tangent * slope
        left, right = (weight_variance * own / 2 + bias_variance for own in (left, right))
    return tangent


def convolutional_ntk(
    a: Tensor, b: Tensor, *, depth: int, weight_variance: float = 2.0, bias_variance: float = 0.01
) -> Tensor:
    """Return the tangent kernel `[m, n]` of an infinitely wide ConvNet on images `[m, C, S, S]` and `[n, C, S, S]`.

    `depth` blocks of 3×3 convolution (zero padded), ReLU and 2×2 average pooling, then one linear layer on all places:
    the network of KIP (Nguyen et al. 2021, arXiv 2107.13034). Covariances are kept for every pair of places of every
    pair of images: S⁴ numbers a pair, of which the first block takes the most.
    """
    a, b = a.double(), b.double()
    cross = torch.einsum("mchw,ncij->mnhwij", a, b) / a.shape[1]
    own = [torch.einsum("mchw,mcij->mhwij", x, x) / x.shape[1] for x in (a, b)]
    tangent = torch.zeros_like(cross)
    for _ in range(depth):
        cross = weight_variance * _convolved(cross) + bias_variance
        tangent = cross + weight_variance * _convolved(tangent)
        own = [weight_variance * _convolved(each) + bias_variance for each in own]
        left, right = (_variances(each) for each in own)
        value, slope = relu_moments(cross, left[:, None, :, :, None, None], right[None, :, None, None])
        cross, tangent = _pooled(value), _pooled(tangent * slope)
        own = [
            _pooled(relu_moments(each, variance[:, :, :, None, None], variance[:, None, None])[0])
            for each, variance in zip(own, (left, right), strict=True)
        ]
    cross = weight_variance * _variances(cross).mean((-2, -1)) + bias_variance
    return cross + weight_variance * _variances(tangent).mean((-2, -1))


def _variances(covariances: Tensor) -> Tensor:
    """Return `[…, H, W]`, the covariances `[…, H, W, H, W]` of every place with itself."""
    return torch.einsum("...hwhw->...hw", covariances)


def _convolved(covariances: Tensor) -> Tensor:
    """Average covariances `[…, H, W, H, W]` over the nine shifts of both places alike, zero outside."""
    height, width = covariances.shape[-2:]
    padded = functional.pad(covariances, (1,) * 8)
    rows = [padded[..., y : y + height, :, y : y + height, :] for y in range(3)]
    summed = rows[0] + rows[1] + rows[2]
    columns = [summed[..., x : x + width, :, x : x + width] for x in range(3)]
    return (columns[0] + columns[1] + columns[2]) / 9


def _pooled(covariances: Tensor) -> Tensor:
    """Return covariances `[…, H/2, W/2, H/2, W/2]` of 2×2 means; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in covariances.shape[-2:])
    cut = covariances[..., :height, :width, :height, :width]
    blocks = cut.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).unflatten(-5, (-1, 2)).unflatten(-7, (-1, 2))
    return blocks.mean((-1, -3, -5, -7))


def gaussian_kernel(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """Return exp(−γ ‖a_i − b_j‖²) `[m, n]` of points `[m, d]` and `[n, d]`, in float64; `gamma` is above 0."""
    return torch.exp(-positive(gamma, "gamma") * torch.cdist(a.double(), b.double()).square())

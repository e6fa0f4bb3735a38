"""Formulas of trajectory matching: how far a student ends from an expert, and what makes an expert smooth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attar.errors import RecipeError


def trajectory_distance(end: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Return ‖end − sg(target)‖² / ‖sg(start − target)‖², one number; 1 means no nearer than at the start.

    All three are flat parameter vectors `[P]` (Cazenavette et al. 2022, arXiv 2203.11932, equation 2).

    Raises:
        RecipeError: the vectors do not have one length.
    """
    if not end.shape == target.shape == start.shape:
        shapes = ", ".join(str(list(vector.shape)) for vector in (end, target, start))
        raise RecipeError(f"end, target and start are flat vectors of one network and need one length; got {shapes}")
    return (end - target.detach()).square().sum() / (start - target).detach().square().sum()


def input_gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return the mean over images and pixels of (‖∂ Σ_k logit_k / ∂x‖_channels − 1)², differentiable.

    `logits` `[n, classes]` were computed from `images` `[n, C, H, W]`, which require gradients; the norm of a pixel is
    over its channels (Shen et al. 2023, arXiv 2310.10541, the gradient penalty of the official code).
    """
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    squares = slope.square().sum(1)
    flat = squares == 0  # the square root has no derivative there: such a pixel counts 1 and pulls nowhere
    return (squares.masked_fill(flat, 1.0).sqrt().masked_fill(flat, 0.0) - 1).square().mean()


def balance_factor(epoch: int, starts: int) -> float:
    """Return what multiplies a student's loss when it starts at an expert's `epoch` out of 0 … starts − 1.

    With h = starts // 2: log₅(epoch − h + 8) from h on, and 1 / log₅(h − epoch + 8) before, so that late segments, in
    which gradients are small, take larger steps (Shen et al. 2023, arXiv 2310.10541).
    """
    half = starts // 2
    if epoch >= half:
        return math.log(epoch - half + 8, 5)
    return 1 / math.log(half - epoch + 8, 5)


def sharpness_aware_direction(gradient: Tensor, climbed: Tensor, share: float) -> Tensor:
    """Return g' − share · g_⊥: the surrogate-gap direction of GSAM, from flat gradients `[P]`.

    `gradient` is g at the weights, `climbed` is g' at the weights moved up the slope, and g_⊥ is the part of g
    orthogonal to g' (Zhuang et al. 2022, arXiv 2203.08065; as in Du et al. 2023, arXiv 2211.11004).
    """
    along = (gradient @ climbed) / climbed.square().sum().clamp_min(torch.finfo(climbed.dtype).tiny)
    return climbed - share * (gradient - along * climbed)


def adaptive_climb(weights: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """Return radius · w² ⊙ g / ‖|w| ⊙ g‖, the step up the slope that scales with the weights (arXiv 2102.11600).

    Flat vectors `[P]`; the length ‖e / |w|‖ of the step is `radius`.
    """
    scaled = weights.abs() * gradient
    return radius * weights.abs() * scaled / (scaled.norm() + 1e-12)

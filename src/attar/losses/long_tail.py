"""Losses for classes of very different sizes: weights by effective numbers, and margins that widen for rare classes."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import RecipeError
from attar.losses.divergence import cross_entropy
from attar.losses.numerics import positive, widened
from attar.losses.reduction import Reduction, reduce


def effective_number_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Return w_k ∝ (1 − β) / (1 − β^n_k) for classes of n_k ≥ 1 samples `[classes]`, float32 with the mean 1.

    1 / n_k in the limit β → 1, all alike for β = 0; a class without a sample weighs what one with a single sample does
    (Cui et al. 2019, arXiv 1901.05555).

    Raises:
        RecipeError: β outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise RecipeError(f"beta is at least 0 and below 1; got {beta}")
    weights = (1 - beta) / -torch.expm1(counts.double().clamp_min(1) * torch.tensor(beta, dtype=torch.double).log())
    return (weights / weights.mean()).float()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_i w_{y_i} CE_i / Σ_i w_{y_i} for class weights w `[classes]`, one number."""
    chosen = weights.to(logits.device)[labels]
    return (chosen * cross_entropy(logits, labels, reduction="none")).sum() / chosen.sum()


def margin_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    *,
    largest: float = 0.5,
    scale: float = 30.0,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the cross-entropy of s · (z − Δ_y at the label), Δ_k = C / n_k^¼ with the `largest` for the rarest: LDAM.

    `logits` are cosines in [−1, 1] of a normalised head, or any; `counts` `[classes]` are n_k ≥ 1. With class
    `weights`, "mean" divides by their sum (Cao et al. 2019, arXiv 1906.07413).

    Raises:
        RecipeError: a scale that is not positive, or an unknown reduction.
    """
    positive(scale, "scale")
    margins = counts.to(logits.device).float().clamp_min(1).pow(-0.25)
    margins = margins * (largest / margins.max())
    target = torch.arange(logits.shape[-1], device=logits.device) == labels.unsqueeze(-1)
    moved = scale * (widened(logits) - torch.where(target, margins, 0.0))
    if weights is not None and reduction == "mean":
        return weighted_cross_entropy(moved, labels, weights)
    return reduce(cross_entropy(moved, labels, reduction="none"), reduction)

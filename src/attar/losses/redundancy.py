"""Self-supervision without negatives: two views must say the same, and no two features the same thing."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import RecipeError


def barlow_twins(a: Tensor, b: Tensor, *, off_diagonal: float = 0.005) -> Tensor:
    """Return Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij², with C the cross-correlation of two views' features over a batch.

    `a`, `b` `[n, d]`, n at least 2; every feature is centred and divided by its biased deviation (a constant one by
    nearly 0, and correlates with nothing). `off_diagonal` is λ. The value does not change when a feature is shifted or
    scaled by a positive number (Zbontar et al. 2021, arXiv 2103.03230, equation 1; λ from its section 4.2).

    Raises:
        RecipeError: views of different shapes, or of a single sample.
    """
    if a.shape != b.shape or a.dim() != 2 or len(a) < 2:
        raise RecipeError(
            f"two views give features [n, d] of one shape, n at least 2; got {list(a.shape)}, {list(b.shape)}"
        )
    correlation = _standardised(a).T @ _standardised(b) / len(a)
    diagonal = correlation.diagonal()
    return (1 - diagonal).square().sum() + off_diagonal * (correlation.square().sum() - diagonal.square().sum())


def _standardised(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return centred / (centred.square().mean(0) + torch.finfo(features.dtype).eps).sqrt()

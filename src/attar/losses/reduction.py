"""How the losses of single samples become one number: always the caller's explicit choice."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from attar.errors import RecipeError, did_you_mean

Reduction = Literal["mean", "sum", "none"]


def reduce(values: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean or sum of `values` (any shape) as a scalar, or `values` themselves for "none".

    Raises:
        RecipeError: another reduction.
    """
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    if reduction == "none":
        return values
    hint = did_you_mean(str(reduction), ["mean", "sum", "none"])
    raise RecipeError(f"unknown reduction {reduction!r}{hint} It is 'mean', 'sum' or 'none'")

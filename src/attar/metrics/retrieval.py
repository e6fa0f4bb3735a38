"""How often what belongs to a query is among the first that are found."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import DataError, RecipeError


def recall_at(scores: Tensor, queries: Tensor, candidates: Tensor, k: int = 1) -> float:
    """Return the share in [0, 1] of queries with a candidate of their own group among the `k` of highest score.

    `scores` `[n, m]`; `queries` `[n]` and `candidates` `[m]` integers, the group of each: captions that say the same
    are one group, so that none is a wrong answer to the other. Of equal scores those of other groups come first.

    Raises:
        DataError: nothing to measure, shapes that do not fit, or a score that is NaN.
        RecipeError: k below 1.
    """
    if scores.dim() != 2 or not scores.numel() or scores.shape != (len(queries), len(candidates)):
        raise DataError(
            f"expected scores [n, m] with groups [n] and [m]; got {list(scores.shape)}, {list(queries.shape)} and "
            f"{list(candidates.shape)}"
        )
    if k < 1:
        raise RecipeError(f"k is at least 1; got {k}")
    if scores.isnan().any():
        raise DataError("scores hold NaN")
    alike = queries[:, None] == candidates[None]
    best = scores.masked_fill(~alike, -torch.inf).amax(1, keepdim=True)
    ahead = ((scores >= best) & ~alike).sum(1)
    return ((ahead < k) & alike.any(1)).double().mean().item()

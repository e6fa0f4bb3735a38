"""What is preferred to what: losses that make one scorer rank as another does."""

from __future__ import annotations

import itertools
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError, did_you_mean

AgainstReal = Literal["expert", "softened", "wins"]


def pairwise_preference(
    expert: Tensor, proxy: Tensor, *, real: int | None = None, against_real: AgainstReal = "expert"
) -> Tensor:
    """Return Σ_{i<j} KL(σ(e_i − e_j) ‖ σ(p_i − p_j)) `[n]` of scores `[n, k]` of k candidates (RG-LCD, 2403.11027).

    σ(a − b) is the probability that softmax(a, b) gives the first of two; no gradient passes to the expert. `real` is
    the candidate that is no made sample. In its pairs the expert's word counts as it is, or is put to ½ where it
    prefers the made one (`softened`), or the real one always wins (`wins`).

    Raises:
        RecipeError: shapes that differ, fewer than two candidates, or a `real` that is none of them.
    """
    if expert.shape != proxy.shape or expert.dim() != 2 or expert.shape[1] < 2:
        raise RecipeError(
            f"preferences are between scores [n, k] of two candidates or more; got {list(expert.shape)} and "
            f"{list(proxy.shape)}"
        )
    if real is not None and not 0 <= real < expert.shape[1]:
        raise RecipeError(f"the real candidate is one of {expert.shape[1]}, counted from 0; got {real}")
    if against_real not in get_args(AgainstReal):
        raise RecipeError(f"unknown rule '{against_real}'{did_you_mean(against_real, get_args(AgainstReal))}")
    total = torch.zeros_like(proxy[:, 0])
    for i, j in itertools.combinations(range(expert.shape[1]), 2):
        wanted = torch.sigmoid((expert[:, i] - expert[:, j]).detach())
        if real in (i, j) and against_real != "expert":
            first = float(i == real)
            lost = wanted < 0.5 if first else wanted > 0.5
            other = torch.full_like(wanted, 0.5) if against_real == "softened" else torch.full_like(wanted, first)
            wanted = torch.where(lost, other, wanted) if against_real == "softened" else other
        gap = proxy[:, i] - proxy[:, j]
        cross = -wanted * functional.logsigmoid(gap) - (1 - wanted) * functional.logsigmoid(-gap)
        total = total + cross + torch.xlogy(wanted, wanted) + torch.xlogy(1 - wanted, 1 - wanted)
    return total

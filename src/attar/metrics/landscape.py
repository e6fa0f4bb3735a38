"""What lies between two trained networks: whether the straight line from one to the other stays good."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attar.errors import RecipeError


def between(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return (1 − share) · start + share · end of two state dicts; what is counted in whole numbers is start's.

    Raises:
        RecipeError: states of different networks.
    """
    if {name: value.shape for name, value in start.items()} != {name: value.shape for name, value in end.items()}:
        raise RecipeError("two networks lie on a line only if they have the same parameters; these differ")
    return {
        name: torch.lerp(value, end[name], share) if value.is_floating_point() else value
        for name, value in start.items()
    }


def error_barrier(
    module: nn.Module,
    start: dict[str, Tensor],
    end: dict[str, Tensor],
    error: Callable[[nn.Module], float],
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
) -> float:
    """Return how far the error on the line between two networks rises above the line between their errors, or 0.

    max_s [e(s) − (1 − s) e(0) − s e(1)], at least 0, with e(s) the error of (1 − s) · start + s · end. Two networks
    with a barrier near 0 are linearly mode-connected (Frankle et al. 2020, arXiv 1912.05671). A network with batch
    norm needs new statistics at every point: let `error` take them first.

    Args:
        module: a network of their kind; it holds `end` afterwards.
        start, end: state dicts.
        error: of a network, such as 1 − accuracy.
        shares: points on the line, inside (0, 1).
    """

    def at(share: float) -> float:
        module.load_state_dict(between(start, end, share))
        return error(module)

    inner = [at(share) for share in shares]
    first, last = at(0.0), at(1.0)
    return max(0.0, *(e - (1 - share) * first - share * last for share, e in zip(shares, inner, strict=True)))

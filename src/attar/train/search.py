"""Choosing a network on a small set: whether it ranks networks as all the data do (arXiv 2006.05929, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from attar.errors import RecipeError
from attar.metrics.ranking import rank_correlation
from attar.nets import ConvNet

DEPTHS, WIDTHS = (1, 2, 3), (8, 32)
NORMS: tuple[Literal["instance", "batch"], ...] = ("instance", "batch")
FULL_PASSES = 10  # over all data, of the networks that the small sets' ranking is compared with


def grid(size: int) -> list[ConvNet]:
    """Return a dozen ConvNets that differ in depth, width and norm, those that read images of `size` pixels a side.

    The papers' grid has 720, with activations and pooling as well.
    """
    nets = [ConvNet(depth=depth, width=width, norm=norm) for depth in DEPTHS for width in WIDTHS for norm in NORMS]
    return [net for net in nets if net.minimum_size <= size]


def agreement(
    judge: Callable[[Any], Mapping[str, float]], nets: Sequence[Any], *, reference: str = "full"
) -> dict[str, Any]:
    """Return how well each arm ranks networks, measured by how the reference ranks them.

    Args:
        judge: from a network to the accuracy of every arm, the reference among them.
        nets: the networks, at least two.
        reference: the arm whose order counts.

    Returns:
        `nets` (each with its `net` and the accuracy of every arm), `correlation` (arm to Spearman's ρ with the
        reference, none where there is no order) and `chosen` (arm to the `net` it takes for the best, the first of
        equals, with the `accuracy` that the reference gives it); the reference's own choice is the best there is.

    Raises:
        RecipeError: fewer than two networks.
    """
    if len(nets) < 2:
        raise RecipeError("networks are ranked where there are at least two that read these images")
    rows = [dict(judge(net)) for net in nets]
    columns = {arm: [row[arm] for row in rows] for arm in rows[0]}
    truth = columns[reference]
    best = {arm: column.index(max(column)) for arm, column in columns.items()}
    return {
        "nets": [{"net": net.label, **row} for net, row in zip(nets, rows, strict=True)],
        "correlation": {arm: rank_correlation(column, truth) for arm, column in columns.items() if arm != reference},
        "chosen": {arm: {"net": nets[k].label, "accuracy": truth[k]} for arm, k in best.items()},
    }

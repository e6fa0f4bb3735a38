"""Two uses of a small set as a reader meets them: as the memory of classes gone by, and to choose a network on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attar.report.charts import bar_chart
from attar.report.results import Arm, bars, net_name, read_arms


def uses(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of both, `continual` and `search`; none where an evaluation has no such part."""
    return {"continual": _continual(evaluation.get("continual")), "search": _search(evaluation.get("search"))}


def _continual(told: Any) -> dict[str, Any] | None:
    """Return the steps with the accuracy of every arm, and the averages as a chart; what cannot be read is left out."""
    steps = told.get("steps") if isinstance(told, Mapping) else None
    rows = []
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, Mapping) and (arms := read_arms(step.get("arms"))):
            new = step.get("classes")
            names = ", ".join(map(str, new)) if isinstance(new, list) else "–"
            rows.append({"seen": step.get("seen", "–"), "classes": names, "arms": {arm.name: arm for arm in arms}})
    averages = _averages(told)
    if not rows or not averages:
        return None
    return {
        "names": [arm.name for arm in averages],
        "steps": rows,
        "averages": averages,
        "chart": bar_chart(bars(averages), "Mean test accuracy over the steps"),
    }


def _averages(told: Any) -> list[Arm]:
    average = told.get("average") if isinstance(told, Mapping) else None
    if not isinstance(average, Mapping):
        return []
    return read_arms([{"name": str(name), "accuracy": value} for name, value in average.items()])


def _search(told: Any) -> dict[str, Any] | None:
    """Return how each arm ranks the networks and what it would choose, and the accuracies behind that."""
    if not isinstance(told, Mapping):
        return None
    correlation, chosen = (_mapping(told.get(key)) for key in ("correlation", "chosen"))
    choices = []
    for name, choice in chosen.items():
        found = read_arms([{"name": str(name), **_mapping(choice)}])
        if found:
            choices.append({"arm": found[0], "net": net_name(choice.get("net")), "rank": _rank(correlation.get(name))})
    nets = told.get("nets")
    rows = []
    for row in nets if isinstance(nets, list) else []:
        known = {key: value for key, value in _mapping(row).items() if key != "net"}
        arms = read_arms([{"name": str(name), "accuracy": value} for name, value in known.items()])
        if arms:
            rows.append({"net": net_name(row.get("net")), "arms": {arm.name: arm for arm in arms}})
    return {"choices": choices, "nets": rows, "names": [str(name) for name in chosen]} if choices else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rank(value: Any) -> str:
    """Return a rank correlation in words; a dash where the arm gave no order, or is the one that counts."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return f"{value:+.2f}" if known else "–"

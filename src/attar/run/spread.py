"""Fan-out over all that works on a run: the processes that a launcher started, and the workers of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from attar.run import keys
from attar.run.fan_out import fan_out
from attar.run.plan import Plan
from attar.run.processes import Processes

T = TypeVar("T")


def spread_out(
    processes: Processes, name: str, function: Callable[[T], Any], items: Sequence[T], plan: Plan
) -> list[Any]:
    """Apply `fan_out` to each process's part of the items, and give every process all results, in the items' order.

    On one process this is `fan_out`. Results do not depend on the number of processes: global generators are seeded by
    an item's position among all. Processes on one machine divide `plan.workers` among them.
    """
    if processes.world == 1:
        return fan_out(name, function, items, workers=plan.workers, threads=plan.threads)

    def work(numbers: Sequence[int]) -> list[Any]:
        mine = [(number, items[number]) for number in numbers]
        workers = max(1, plan.workers // processes.beside)
        return fan_out(name, functools.partial(_in_place, function), mine, workers=workers, threads=plan.threads)

    return processes.spread(work, len(items))


def _in_place(function: Callable[[T], Any], numbered: tuple[int, T]) -> Any:
    """Work on an item with the global generators that `fan_out` gives one in its place."""
    number, item = numbered
    keys.seed_globals(keys.key(0, ["fan-out"], "globals", (number,)))
    return function(item)

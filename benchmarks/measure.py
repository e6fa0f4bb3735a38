"""Paired, interleaved timing: two ways of doing the same work take turns, so that a busy machine slows both."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """How many times as long the other way takes, and a 95 % bootstrap interval of that median."""

    topic: str
    value: float
    low: float
    high: float
    ours: float  # median
    other: float  # median
    pairs: int
    target: str
    note: str
    unit: str = "s"  # or MB

    @property
    def met(self) -> bool:
        """Whether the target (`>= x` or `<= x`) is met by the median."""
        relation, bound = self.target.split()
        return self.value >= float(bound) if relation == ">=" else self.value <= float(bound)

    def line(self) -> str:
        """Return the row of the table."""
        interval = f"[{self.low:.3f}, {self.high:.3f}]"
        verdict = "met" if self.met else "MISSED"
        times = f"{_amount(self.ours, self.unit)} / {_amount(self.other, self.unit)}"
        return (
            f"{self.topic:<44} {self.value:>6.3f} {interval:<16} {self.target:<8} {verdict:<7} {times:<21} {self.note}"
        )


HEADER = f"{'topic':<44} {'ratio':>6} {'95 % interval':<16} {'target':<8} {'':<7} {'attar / other':<21} conditions"


def paired(
    topic: str,
    ours: Callable[[], object],
    other: Callable[[], object],
    *,
    pairs: int,
    target: str,
    note: str,
    warmup: int = 1,
) -> Ratio:
    """Time both ways `pairs` times by the clock, in turn and in alternating order, and return their ratio."""
    for _ in range(warmup):
        ours(), other()
    times = []
    for index in range(pairs):
        taken = {}
        for way in (ours, other) if index % 2 == 0 else (other, ours):
            began = time.perf_counter()
            way()
            taken[way] = time.perf_counter() - began
        times.append((taken[ours], taken[other]))
    return summarise(topic, times, target=target, note=note)


def summarise(
    topic: str, times: Sequence[tuple[float, float]], *, target: str, note: str, inverse: bool = False, unit: str = "s"
) -> Ratio:
    """Return the median of other / ours (or, `inverse`, of ours / other) over pairs (ours, other) of seconds or MB."""
    logs = [math.log(mine / theirs) if inverse else math.log(theirs / mine) for mine, theirs in times]
    low, high = bootstrap(logs)
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    value = math.exp(statistics.median(logs))
    return Ratio(topic, value, math.exp(low), math.exp(high), mine, theirs, len(times), target, note, unit)


def bootstrap(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[round(0.025 * draws)], medians[round(0.975 * draws) - 1]


def _amount(value: float, unit: str) -> str:
    return f"{value * 1000:.2f} ms" if unit == "s" and value < 1 else f"{value:.2f} {unit}"

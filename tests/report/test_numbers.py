from __future__ import annotations

import itertools
import math
import statistics

import pytest

from attar.report.numbers import log_ticks, nice_ticks, spans_decades, t_interval


def test_interval_is_students_t_by_hand() -> None:
    low, high = t_interval([0.70, 0.72, 0.74])  # s = 0.02, t(0.975, 2) = 4.302653
    assert low == pytest.approx(0.72 - 4.302653 * 0.02 / math.sqrt(3), abs=1e-7)
    assert high == pytest.approx(0.72 + 4.302653 * 0.02 / math.sqrt(3), abs=1e-7)


def test_interval_is_normal_for_many_values() -> None:
    values = [math.sin(index * 1.7) for index in range(20_000)]
    low, high = t_interval(values)
    assert (high - low) / 2 == pytest.approx(1.95996 * statistics.stdev(values) / math.sqrt(20_000), rel=1e-4)


def test_interval_of_one_value_is_the_value() -> None:
    assert t_interval([0.5]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0.93), (-3.2, 7), (0.001, 0.0012), (12, 98765), (5, 5), (0, 0), (-2, -2), (1e-9, 2e-9)]
)
def test_ticks_enclose_the_range_in_equal_round_steps(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in itertools.pairwise(ticks)}
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert steps == {1.0}
    assert 3 <= len(ticks) <= 8


def test_log_ticks_enclose_the_range_and_stay_few() -> None:
    for low, high in [(0.02, 30), (1e-12, 5), (1, 1000)]:
        ticks = log_ticks(low, high)
        assert ticks[0] <= low < high <= ticks[-1]
        assert len(ticks) <= 8


def test_an_axis_is_logarithmic_only_for_positive_values_over_two_decades() -> None:
    assert spans_decades([1, 10, 100])
    assert not spans_decades([1, 10, 99])
    assert not spans_decades([0, 10, 1000])
    assert not spans_decades([1 - step / 2000 for step in range(2000)])  # a linear schedule ends near zero, no more

"""Numbers as a reader wants them: intervals over networks, percentages, sizes, durations, ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval of the mean of `values`: `mean ± t(level, n - 1) · s / sqrt(n)`.

    With fewer than two values there is no interval, and both ends are the mean.
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, mean
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = half_width(deviation, count, level)
    return mean - half, mean + half


def half_width(deviation: float, count: int, level: float = 0.95) -> float:
    """Return half of Student's t interval of a mean, from the sample standard deviation and the number of values."""
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    return float(stdtrit(count - 1, 0.5 + level / 2)) * deviation / math.sqrt(count)


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Return about `target` round numbers (steps of 1, 2, 2.5 or 5 times a power of ten) that enclose [low, high].

    >>> nice_ticks(0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        low, high = (low - 0.5, low + 0.5) if low == 0 else sorted((low * 0.9, low * 1.1))
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten that enclose the positive range [low, high], at most about six of them.

    >>> log_ticks(0.02, 30)
    [0.01, 0.1, 1.0, 10.0, 100.0]
    """
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    stride = max(1, math.ceil((last - first) / 6))
    last = first + stride * math.ceil((last - first) / stride)
    return [float(f"1e{exponent}") for exponent in range(first, last + 1, stride)]


def spans_decades(values: Sequence[float]) -> bool:
    """Say whether the values are positive and span two decades, the lowest and highest fiftieth of them left aside."""
    ordered = sorted(values)
    aside = len(ordered) // 50
    return ordered[0] > 0 and ordered[-1 - aside] >= 100 * ordered[aside]


def short(value: float) -> str:
    """Return a number in about four figures: `0.0312`, `12,345`, `1.2e-7`.

    >>> short(0.031249), short(12345.0), short(1.23e-7), short(600), short(0.0)
    ('0.03125', '12,345', '1.23e-07', '600', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-4 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) < 1e15 and abs(value) >= 1e4 else f"{value:.3g}"


def percent(value: float) -> str:
    """Return a share in [0, 1] as a percentage, a thin no-break space before the sign.

    >>> percent(0.7696).replace("\u202f", " ")
    '77.0 %'
    """
    return f"{100 * value:.1f}\u202f%"


def bytes_text(count: float) -> str:
    """Return a size in bytes in units of 1000.

    >>> bytes_text(78400), bytes_text(512), bytes_text(7_840_000)
    ('78.4 kB', '512 B', '7.84 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def seconds_text(seconds: float) -> str:
    """Return a duration in the units a person uses.

    >>> seconds_text(0.031), seconds_text(12.34), seconds_text(192.4), seconds_text(7500)
    ('0.03 s', '12.3 s', '3 min 12 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"

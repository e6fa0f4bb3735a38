"""Charts as inline SVG: pure functions from numbers to markup, coloured by the style sheet of the page.

Every chart has a title and a description for readers who do not see it. Text is escaped here; what comes out is safe
to put into a page as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from attar.report.numbers import log_ticks, nice_ticks, percent, short, spans_decades

BUCKETS = 120  # a curve is drawn as at most this many pairs of lowest and highest value: no spike is lost


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its value, the ends of its interval (both the value where there is none), and its tone.

    `tone` is a class of the style sheet: `first` and `second` are the accents, `rest` is grey.
    """

    label: str
    value: float
    low: float
    high: float
    tone: str = "rest"


def bar_chart(bars: Sequence[Bar], title: str, width: int = 460) -> Markup:
    """Draw shares in [0, 1] as horizontal bars from zero with their intervals, the label above and the value beside.

    Lengths are proportional to values; the axis ends at 100 % or at the next round number above the highest interval.
    """
    row, top, left, right = 44, 6, 4, 76
    ticks = nice_ticks(0, max([bar.high for bar in bars] + [bar.value for bar in bars] + [1e-3]))
    span = width - left - right
    height = top + row * len(bars) + 24

    def x(value: float) -> float:
        return left + span * min(max(value, 0.0), ticks[-1]) / ticks[-1]

    bottom = top + row * len(bars)
    parts = [_line("grid", x(tick), top, x(tick), bottom) for tick in ticks]
    parts += [
        _text("tick", x(tick), bottom + 16, f"{short(100 * tick)}\u202f%" if tick else "0", "middle") for tick in ticks
    ]
    for index, bar in enumerate(bars):
        y = top + row * index
        known = bar.high > bar.low
        words = f"{bar.label}: {percent(bar.value)}" + (
            f", interval {percent(bar.low)} to {percent(bar.high)}" if known else ""
        )
        parts.append(_text("label", left, y + 13, bar.label, "start"))
        parts.append(
            f'<rect class="bar {escape(bar.tone)}" x="{x(0):.2f}" y="{y + 18}" width="{x(bar.value) - x(0):.2f}" '
            f'height="18" rx="2"><title>{escape(words)}</title></rect>'
        )
        if known:
            middle = y + 27
            parts.append(_line("whisker", x(bar.low), middle, x(bar.high), middle))
            parts += [_line("whisker", x(end), middle - 4, x(end), middle + 4) for end in (bar.low, bar.high)]
        parts.append(_text("value", width - right + 10, y + 32, percent(bar.value), "start"))
    description = "; ".join(f"{bar.label} {percent(bar.value)}" for bar in bars)
    return _svg(parts, width, height, title, description)


def line_chart(
    steps: Sequence[float], values: Sequence[float], title: str, width: int = 360, height: int = 190
) -> Markup:
    """Draw a logged value over its steps: the range it really took, faint, under a smoothed line.

    The axis is logarithmic where the values are positive and span two decades. Values that are not finite are
    left out. `steps` and `values` have the same length.
    """
    points = [(float(s), float(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if not points:
        return _svg(
            [_text("tick", width / 2, height / 2, "no finite value", "middle")], width, height, title, "no finite value"
        )
    logarithmic = spans_decades([value for _, value in points])
    low, high = min(value for _, value in points), max(value for _, value in points)
    ticks = log_ticks(low, high) if logarithmic else nice_ticks(low, high, 4)
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    left, right, top, bottom = 52, width - 12, 10, height - 26
    first, last = points[0][0], points[-1][0]

    def x(step: float) -> float:
        return left + (right - left) * ((step - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        share = (scale(value) - scale(ticks[0])) / (scale(ticks[-1]) - scale(ticks[0]))
        return bottom - (bottom - top) * share

    parts = [_line("grid", left, y(tick), right, y(tick)) for tick in ticks]
    parts += [_text("tick", left - 6, y(tick) + 4, short(tick), "end") for tick in ticks]
    parts.append(_text("tick", left, height - 8, short(first), "start"))
    if last > first:
        parts.append(_text("tick", right, height - 8, f"step {short(last)}", "end"))
    parts.append(_polyline("raw", [(x(step), y(value)) for step, value in extremes(points)]))
    smooth = smoothed([scale(value) for _, value in points])
    back: Callable[[float], float] = (lambda value: 10**value) if logarithmic else float
    stride = max(1, len(points) // BUCKETS)
    kept = sorted({*range(0, len(points), stride), len(points) - 1})
    parts.append(_polyline("smooth", [(x(points[index][0]), y(back(smooth[index]))) for index in kept]))
    if len(points) == 1:
        parts.append(f'<circle class="dot" cx="{x(first):.2f}" cy="{y(points[0][1]):.2f}" r="3"/>')
    return _svg(parts, width, height, title, summary(steps, values) + (", logarithmic axis" if logarithmic else ""))


def scatter(points: Sequence[tuple[float, float]], reach: float, title: str, width: int = 220) -> Markup:
    """Draw points of the plane in the square [-reach, reach]²; those outside, or not finite, are counted in words."""
    inside = [(x, y) for x, y in points if abs(x) <= reach and abs(y) <= reach]
    scale = width / (2 * reach) if reach > 0 else 1.0
    dots = [f"M{(x + reach) * scale:.1f} {(reach - y) * scale:.1f}h0" for x, y in inside]  # a line of no length: a dot
    parts = [_line("grid", 0, width / 2, width, width / 2), _line("grid", width / 2, 0, width / 2, width)]
    parts.append(f'<path class="points" d="{"".join(dots)}"/>')
    beyond = len(points) - len(inside)
    words = f"{len(inside)} points" + (f", {beyond} more lie outside" if beyond else "")
    return _svg(parts, width, width, title, words)


def summary(steps: Sequence[float], values: Sequence[float]) -> str:
    """Say in words where a curve starts, where it ends, and the extremes between."""
    points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if not points:
        return "no finite value"
    if len(points) == 1:
        return f"{short(points[0][1])} at step {short(points[0][0])}"
    lowest, highest = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    return (
        f"from {short(points[0][1])} to {short(points[-1][1])}; lowest {short(lowest[1])} at step {short(lowest[0])}, "
        f"highest {short(highest[1])} at step {short(highest[0])}"
    )


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the centred moving mean over a twentieth of the values, the window cut evenly at both ends.

    A straight line stays as it is.
    """
    reach = len(values) // 40
    totals = [0.0]
    for value in values:
        totals.append(totals[-1] + value)
    means = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        means.append((totals[index + near + 1] - totals[index - near]) / (2 * near + 1))
    return means


def extremes(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Thin points to the lowest and the highest of each of `BUCKETS` stretches, in order; short curves stay whole."""
    if len(points) <= 2 * BUCKETS:
        return list(points)
    kept: list[tuple[float, float]] = []
    for bucket in range(BUCKETS):
        part = points[bucket * len(points) // BUCKETS : (bucket + 1) * len(points) // BUCKETS]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept


def _svg(parts: Sequence[str], width: float, height: float, title: str, description: str) -> Markup:
    """Wrap the parts as a picture that is read out as its title and description."""
    return Markup(
        f'<svg class="chart" role="img" aria-label="{escape(title)}: {escape(description)}" '
        f'viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(text)}</text>'


def _polyline(kind: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'

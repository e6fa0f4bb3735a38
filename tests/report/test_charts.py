from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import pytest

from attar.report.charts import BUCKETS, Bar, bar_chart, extremes, line_chart, smoothed, summary


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def bars_of(svg: str) -> list[ET.Element]:
    return [rect for rect in parse(svg).iter("rect") if "bar" in rect.attrib["class"].split()]


def curve(svg: str, kind: str) -> list[tuple[float, float]]:
    line = next(each for each in parse(svg).iter("polyline") if each.attrib["class"] == kind)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]


def test_lengths_of_bars_are_proportional_to_values() -> None:
    rects = bars_of(bar_chart([Bar("a", 0.8, 0.8, 0.8), Bar("b", 0.4, 0.4, 0.4), Bar("c", 0.1, 0.1, 0.1)], "t"))
    lengths = [float(rect.attrib["width"]) for rect in rects]
    assert lengths[0] / lengths[1] == pytest.approx(2, rel=1e-3)
    assert lengths[0] / lengths[2] == pytest.approx(8, rel=1e-3)
    assert len({rect.attrib["x"] for rect in rects}) == 1


def test_whiskers_span_the_interval_on_the_scale_of_the_bars() -> None:
    svg = bar_chart([Bar("a", 0.6, 0.5, 0.7)], "t")
    rect = bars_of(svg)[0]
    start, unit = float(rect.attrib["x"]), float(rect.attrib["width"]) / 0.6
    whisker = next(line for line in parse(svg).iter("line") if line.attrib["class"] == "whisker")
    assert float(whisker.attrib["x1"]) == pytest.approx(start + 0.5 * unit, abs=0.02)
    assert float(whisker.attrib["x2"]) == pytest.approx(start + 0.7 * unit, abs=0.02)


def test_a_bar_without_interval_has_no_whisker() -> None:
    assert "whisker" not in bar_chart([Bar("a", 0.6, 0.6, 0.6)], "t")


def test_everything_drawn_lies_inside_the_picture() -> None:
    svg = bar_chart([Bar("a", 1.0, 0.98, 1.0), Bar("b", 0.0, 0.0, 0.0)], "t")
    width, height = (float(part) for part in parse(svg).attrib["viewBox"].split()[2:])
    for line in parse(svg).iter("line"):
        assert 0 <= float(line.attrib["x1"]) <= float(line.attrib["x2"]) <= width
        assert float(line.attrib["y2"]) <= height


def test_labels_and_titles_are_escaped_and_read_out() -> None:
    svg = bar_chart([Bar('<script>"&', 0.5, 0.4, 0.6)], '<b> & "title"')
    assert "<script" not in svg
    assert parse(svg).attrib["aria-label"].startswith('<b> & "title": <script>"& 50.0')
    assert parse(svg).attrib["role"] == "img"


def test_a_line_rises_with_its_values_from_left_to_right() -> None:
    points = curve(line_chart([0, 1, 2, 4], [1, 2, 3, 5], "t"), "raw")
    assert points[1][0] - points[0][0] == pytest.approx((points[3][0] - points[0][0]) / 4, abs=0.1)
    assert points[0][1] - points[1][1] == pytest.approx((points[0][1] - points[3][1]) / 4, abs=0.1)
    assert points[3][1] < points[0][1]  # up is less y


def test_decades_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    heights = [y for _, y in curve(line_chart([0, 1, 2, 3], [1000, 100, 10, 1], "t"), "raw")]
    gaps = [b - a for a, b in itertools.pairwise(heights)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.11)
    assert gaps[0] > 10


def test_values_that_are_not_finite_are_left_out() -> None:
    svg = line_chart([0, 1, 2, 3], [1.0, math.nan, math.inf, 2.0], "t")
    assert len(curve(svg, "raw")) == 2
    assert "nan" not in svg.lower().replace("finance", "")
    assert "no finite value" in line_chart([0], [math.nan], "t")


def test_one_value_and_equal_values_are_drawn() -> None:
    assert "circle" in line_chart([5], [0.3], "t")
    heights = {y for _, y in curve(line_chart([0, 1, 2], [0.3, 0.3, 0.3], "t"), "smooth")}
    assert len(heights) == 1


def test_smoothing_keeps_a_straight_line_and_averages_noise() -> None:
    line = [0.5 * index for index in range(200)]
    assert smoothed(line) == pytest.approx(line)
    assert smoothed([1.0, -1.0] * 100)[100] == pytest.approx(0, abs=0.1)


def test_thinning_keeps_every_spike_and_the_order() -> None:
    points = [(float(step), 0.0) for step in range(10_000)]
    points[4321] = (4321.0, 99.0)
    thin = extremes(points)
    assert (4321.0, 99.0) in thin
    assert len(thin) <= 2 * BUCKETS
    assert thin == sorted(thin)


def test_words_name_the_ends_and_the_extremes() -> None:
    assert summary([0, 10, 20], [2, 0.5, 1]) == "from 2 to 1; lowest 0.5 at step 10, highest 2 at step 0"

"""A page that sets runs side by side: their accuracy, their images class by class, and how their recipes differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attar.errors import AttarError
from attar.files import write_text
from attar.report import recipe as recipes
from attar.report.charts import bar_chart
from attar.report.folder import RunFolder, read_folder
from attar.report.numbers import seconds_text
from attar.report.page import INTERVAL, environment, pictures_of
from attar.report.pictures import Gallery
from attar.report.results import Arm, bars, read_arms

EACH = 3  # images of a class and run
CLASSES = 10
REFERENCES = ("random", "full")


def write_comparison(folders: Sequence[str | Path], target: str | Path) -> Path:
    """Write one self-contained page about several runs and return its path.

    Args:
        folders: run folders, finished and evaluated or not.
        target: the file to write; it must not exist, unless it is a page of this kind.

    Raises:
        AttarError: fewer than two runs, or a file in the way.
        DataError: one of them is not a run folder.
    """
    target = Path(target)
    if len(folders) < 2:
        raise AttarError("a comparison takes at least two run folders")
    if target.exists() and (not target.is_file() or _MARK not in target.read_text(encoding="utf-8", errors="replace")):
        raise AttarError(f"{target} exists and is no comparison; choose another file with --out")
    runs = [read_folder(Path(folder)) for folder in folders]
    names = _names(runs)
    page = environment().get_template("comparison.html").render(_content(runs, names, target))
    write_text(target, page)
    return target


_MARK = '<meta name="attar-page" content="comparison">'


def _content(runs: Sequence[RunFolder], names: Sequence[str], target: Path) -> dict[str, Any]:
    judged = [{} if run.evaluation.get("kind") == "sampler" else run.evaluation for run in runs]  # not by accuracy
    tables = [read_arms(one.get("arms"), one.get("networks")) for one in judged]
    own = [next((arm for arm in arms if arm.name not in REFERENCES), None) for arms in tables]
    shown = [replace(arm, name=name, images=None) for arm, name in zip(own, names, strict=True) if arm]
    shown += _references(tables)
    galleries = [pictures_of(run, _chosen_from(run))[0] for run in runs]
    return {
        "title": f"{len(runs)} runs side by side",
        "names": names,
        "links": [_link(run, target) for run in runs],
        "chart": bar_chart(bars(shown), "Test accuracy by run", width=640) if shown else "",
        "interval_note": INTERVAL,
        "pictures": _pictures(galleries),
        "size": max((gallery.size for gallery in galleries if gallery), default=0),
        "facts": _facts(runs, own),
        "differing": _differing(runs),
    }


def _references(tables: Sequence[Sequence[Arm]]) -> list[Arm]:
    """Return each baseline of the first run that was judged beside it: those of the others are the same or unlike."""
    found: dict[str, Arm] = {}
    for arms in tables:
        for arm in arms:
            if arm.name in REFERENCES:
                found.setdefault(arm.name, arm)
    return [replace(arm, name=f"{name} (baseline)") for name, arm in found.items()]


def _chosen_from(run: RunFolder) -> Any:
    """Return the data that a selection was made from, where its recipe still leads to them: it holds no images."""
    named = run.recipe.get("inputs", {}).get("data")
    if run.artifact.get("kind") != "selection" or not isinstance(named, str):
        return None
    from attar import data

    try:
        return data.resolve(named)
    except AttarError:
        return None


def _pictures(galleries: Sequence[Gallery | None]) -> list[dict[str, Any]]:
    """Return a row for each class that every run with pictures has, with the first images of each run."""
    known = [gallery for gallery in galleries if gallery]
    if not known:
        return []
    rows = []
    for index, row in enumerate(known[0].rows[:CLASSES]):
        if all(index < len(gallery.rows) and gallery.rows[index].name == row.name for gallery in known):
            cells = [gallery.rows[index].made[:EACH] if gallery else [] for gallery in galleries]
            rows.append({"name": row.name, "cells": cells})
    return rows


def _facts(runs: Sequence[RunFolder], own: Sequence[Arm | None]) -> list[tuple[str, list[str]]]:
    """Return what was measured of each run, one line a fact."""

    def line(name: str, values: Sequence[str]) -> list[tuple[str, list[str]]]:
        return [(name, list(values))] if any(value != "–" for value in values) else []

    accuracy = ["–" if arm is None else f"{100 * arm.accuracy:.1f} %" for arm in own]
    spread = ["–" if arm is None or arm.deviation is None else f"± {100 * arm.deviation:.1f}" for arm in own]
    images = ["–" if arm is None or arm.images is None else f"{arm.images:,}" for arm in own]
    seconds = [seconds_text(value) if isinstance(value := run.run.get("seconds"), int | float) else "–" for run in runs]
    return [
        *line("test accuracy", accuracy),
        *line("over networks", spread),
        *line("images", images),
        *line("time of the run", seconds),
        *line("state", [str(run.run.get("state", "–")) for run in runs]),
    ]


def _differing(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Return the entries of the recipes that are not the same in all runs."""
    flat = [
        recipes.flatten({key: run.recipe.get(key) for key in ("id", "version", "seed")})
        | recipes.flatten(run.recipe.get("inputs", {}))
        | recipes.flatten(run.recipe.get("fields", {}))
        for run in runs
    ]
    keys = dict.fromkeys(key for entries in flat for key in entries)
    rows = [(key, [_cell(entries[key]) if key in entries else "–" for entries in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _cell(value: Any, most: int = 60) -> str:
    words = recipes.shown(value)
    return words if len(words) <= most else words[: most - 1] + "…"


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """Return a short name for each run: its system, told apart by the folder where two are of one."""
    ids = [str(run.recipe.get("id", "run")) for run in runs]
    return [id if ids.count(id) == 1 else run.path.resolve().name for id, run in zip(ids, runs, strict=True)]


def _link(run: RunFolder, target: Path) -> str:
    """Return the way from the page to the run's own report, if it has one."""
    report = run.path / "report.html"
    if not report.is_file():
        return ""
    try:
        return Path(os.path.relpath(report.resolve(), target.resolve().parent)).as_posix()
    except ValueError:  # another drive
        return ""

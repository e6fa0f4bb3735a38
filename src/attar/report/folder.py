"""A run folder as it is read for a report: whatever is there, and in words whatever could not be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attar import files
from attar.errors import DamagedFile, DataError


@dataclass(frozen=True)
class Curve:
    """The values logged under one name in one loop, with the steps they were logged at."""

    loop: str
    name: str
    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RunFolder:
    """The files of a run; every mapping is empty where its file is missing, and `problems` says which were damaged."""

    path: Path
    recipe: Mapping[str, Any]
    plan: Mapping[str, Any]
    run: Mapping[str, Any]
    artifact: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    curves: list[Curve]
    problems: list[str]


def read_folder(path: Path) -> RunFolder:
    """Read a run folder, finished or not.

    Raises:
        DataError: there is no `recipe.json`, so that this is not a run folder, or it cannot be read.
    """
    problems: list[str] = []
    recipe = _read_json(path / "recipe.json", problems, "fields", "inputs")
    if not recipe:
        why = problems[0] if problems else "it has no recipe.json"
        raise DataError(f"'{path}' is not a run folder: {why}. Give the folder that 'attar run' printed")
    return RunFolder(
        path=path,
        recipe=recipe,
        plan=_read_json(path / "plan.json", problems),
        run=_read_json(path / "run.json", problems),
        artifact=_read_json(path / "artifact" / "artifact.json", problems),
        evaluation=_read_json(path / "evaluation.json", problems),
        curves=read_curves(path / "metrics.jsonl", problems),
        problems=problems,
    )


def read_curves(path: Path, problems: list[str]) -> list[Curve]:
    """Read the logged numbers of every loop, in the order in which they first appear.

    A last line that a killed process left half-written is passed over; other unreadable lines count as a problem.
    """
    curves: dict[tuple[str, str], Curve] = {}
    damaged = 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            loop, step = str(entry.pop("loop", "")), float(entry.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            damaged += bool(line.strip()) and number < len(lines) - 1
            continue
        entry.pop("time", None)
        for name, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
                curve = curves.setdefault((loop, name), Curve(loop, name))
                curve.steps.append(step)
                curve.values.append(float(value))
    if damaged:
        problems.append(f"metrics.jsonl has {damaged} unreadable lines")
    return list(curves.values())


def _read_json(path: Path, problems: list[str], *mappings: str) -> Mapping[str, Any]:
    """Read an object; what is damaged, or no mapping under the keys where one belongs, is left out and named."""
    if not path.is_file():
        return {}
    try:
        value = files.read_object(path)
    except DamagedFile as error:
        problems.append(str(error).replace(str(path), path.name))
        return {}
    for key in mappings:
        if not isinstance(value.get(key, {}), dict):
            problems.append(f"‘{key}’ in {path.name} is no mapping")
            del value[key]
    return value

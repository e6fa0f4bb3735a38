"""The recipe of a run as rows of a table, and as the command line that runs it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attar import catalogue, ledger
from attar.errors import AttarError
from attar.spec import build, to_json


@dataclass(frozen=True)
class Row:
    """One field: its dotted name, its value, the default it differs from (empty where it does not), and its note."""

    name: str
    value: str
    default: str
    note: str


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as dotted names; a nested spec's own name stands for its kind.

    >>> flatten({"ipc": 10, "net": {"kind": "convnet", "width": 64}})
    {'ipc': 10, 'net': 'convnet', 'net.width': 64}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, Mapping) else ():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if "kind" in value:
                flat[name] = value["kind"]
            flat |= flatten({inner: each for inner, each in value.items() if inner != "kind"}, f"{name}.")
        else:
            flat[name] = value
    return flat


def method_of(recipe: Mapping[str, Any]) -> type | None:
    """Return the method's class, or None where this version of Attar does not have it."""
    try:
        return ledger.method_class(str(recipe.get("id")))
    except (AttarError, ImportError, AttributeError):
        return None


def preset_fields(recipe: Mapping[str, Any], preset: str | None) -> dict[str, Any] | None:
    """Return the flat fields of the recipe's method under a preset, None where either is not known.

    What lies inside another kind than the preset's has the values that come with the kind: with `net=resnet18` the
    width is ResNet's own, and with `base=dc` the steps are those of the preset of `dc`.
    """
    cls = method_of(recipe)
    if cls is None:
        return None
    kinds = kinds_in(recipe.get("fields", {}))
    try:
        plain, alike = (flatten(to_json(build(cls, given, preset=preset))) for given in ({}, kinds))
    except AttarError:
        return None
    return alike | {name: plain[name] for name in flatten(kinds) if name in plain}


def kinds_in(values: Any) -> dict[str, Any]:
    """Return of nested mappings the kinds alone.

    >>> kinds_in({"ipc": 10, "base": {"kind": "dm", "ipc": 1, "net": {"kind": "mlp", "width": 8}}})
    {'base': {'kind': 'dm', 'net': {'kind': 'mlp'}}}
    """
    found = {}
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            kind = {"kind": value["kind"]} if "kind" in value else {}
            if inside := kind | kinds_in(value):
                found[name] = inside
    return found


def recipe_rows(recipe: Mapping[str, Any]) -> list[Row]:
    """Return the fields of a recipe, each with its note and the paper's default where it differs from that."""
    defaults = preset_fields(recipe, None)
    cls = method_of(recipe)
    try:
        notes = {} if cls is None else catalogue.notes(cls, recipe.get("fields", {}))
    except (AttarError, OSError, TypeError, AttributeError):  # the source is not at hand, or the fields are none
        notes = {}
    rows = []
    for name, value in flatten(recipe.get("fields", {})).items():
        differs = defaults is not None and defaults.get(name) != value
        default = shown(defaults[name]) if differs and defaults and name in defaults else ""
        rows.append(Row(name, shown(value), default or ("unset" if differs else ""), notes.get(name, "")))
    return rows


def command_line(recipe: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Return the command that runs a recipe again: the preset, what differs from it, inputs, seed and threads.

    Without the method at hand every field is spelled out.
    """
    preset = recipe.get("preset")
    base = preset_fields(recipe, str(preset) if preset else None)
    words = ["attar", "run", str(recipe.get("id", ""))]
    words += [f"{name}={text(value)}" for name, value in flatten(recipe.get("inputs", {})).items()]
    words += [f"preset={preset}"] if preset else []
    words += [
        f"{name}={text(value)}"
        for name, value in flatten(recipe.get("fields", {})).items()
        if base is None or base.get(name) != value
    ]
    words.append(f"seed={text(recipe.get('seed', 0))}")
    if plan.get("threads"):
        words.append(f"threads={text(plan['threads'])}")
    return shlex.join(words)


def shown(value: Any) -> str:
    """Return a JSON value as it is read by a person: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def told(values: Any) -> str:
    """Return nested mappings in one line: `epochs 300, net convnet, net.width 64`."""
    return ", ".join(f"{name} {shown(value)}" for name, value in flatten(values).items())


def text(value: Any) -> str:
    """Return a JSON value as it is written after `key=`: a string bare unless it would be read as something else.

    >>> text("convnet"), text("7"), text([1, 2]), text(None)
    ('convnet', '"7"', '[1, 2]', 'null')
    """
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        if value.strip() and value.lstrip()[0] not in '[{"':
            return value
    return json.dumps(value, ensure_ascii=False)

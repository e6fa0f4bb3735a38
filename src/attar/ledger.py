"""The ledger: every system and base, where its code stands, and what its claim came to.

The rows live in `systems.toml`; status and verdict are derived from the files that exist and from the result files of
claims, never typed. Nothing here imports torch, and nothing registers by being imported.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from attar import results
from attar.errors import RecipeError, did_you_mean

FAMILIES = (
    "data-distillation",
    "data-efficiency",
    "dense-imaging",
    "model-language",
    "model-vision",
    "sampler-distribution",
    "sampler-trajectory",
)
Status = Literal["works", "partial", "planned"]

_PACKAGE = Path(__file__).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """One row of the ledger; `method`, `objective` and `claim` are paths of the form `module:Class`."""

    id: str
    title: str
    family: str
    paper: str = ""
    base: bool = False
    method: str | None = None
    objective: str | None = None
    claim: str | None = None

    @property
    def code(self) -> str | None:
        """The path of the method or the objective, whichever the row has."""
        return self.method or self.objective


@functools.cache
def rows() -> tuple[System, ...]:
    """Return every row of the ledger, bases first, in the order of the file.

    Raises:
        ValueError: an id stands twice, a family is unknown, or a row has both a method and an objective.
    """
    found = tuple(System(**row) for row in _tables()["system"])
    seen: set[str] = set()
    for row in found:
        if row.id in seen:
            raise ValueError(f"systems.toml: the id '{row.id}' stands twice")
        if row.family not in FAMILIES:
            raise ValueError(f"systems.toml: '{row.id}' has the unknown family '{row.family}'")
        if row.method and row.objective:
            raise ValueError(f"systems.toml: '{row.id}' has both a method and an objective")
        seen.add(row.id)
    return found


@functools.cache
def claims() -> tuple[System, ...]:
    """Return the claims that belong to no single system, as rows without code; `rows` and `systems` leave them out.

    Raises:
        ValueError: the id of one is taken, or its family is unknown.
    """
    found = tuple(System(**row) for row in _tables()["claim"])
    taken = [row.id for row in (*rows(), *found)]
    for row in found:
        if taken.count(row.id) > 1:
            raise ValueError(f"systems.toml: the id '{row.id}' stands twice")
        if row.family not in FAMILIES:
            raise ValueError(f"systems.toml: '{row.id}' has the unknown family '{row.family}'")
    return found


def find(id: str) -> System:
    """Return the row with this id.

    >>> find("dm").title
    'Dataset Condensation with Distribution Matching'

    Raises:
        RecipeError: no row has the id; the message names the nearest.
    """
    known = {row.id: row for row in rows()}
    if id not in known:
        raise RecipeError(f"unknown method '{id}'{did_you_mean(id, known)} 'attar systems' lists all")
    return known[id]


def exists(path: str | None) -> bool:
    """Say whether the module of a `module:Class` path has a file in this package, without importing it."""
    if path is None:
        return False
    module = path.partition(":")[0].split(".")
    place = _PACKAGE.joinpath(*module[1:])
    return module[0] == "attar" and (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file())


def status(row: System, decided: Mapping[str, Mapping[str, Any]] | None = None) -> Status:
    """Derive the status of a row.

    `planned`: there is no code. `works`: there is code and its claim is decided by a fresh result (whatever the
    verdict, `inconclusive` included), or it is a base without a claim. `partial`: there is code, but no decided claim.
    """
    if not exists(row.code):
        return "planned"
    if row.claim is None:
        return "works" if row.base else "partial"
    result = (results.results() if decided is None else decided).get(row.id)
    return "works" if result and result.get("verdict") and not result.get("stale") else "partial"


def systems(family: str | None = None) -> list[dict[str, Any]]:
    """Return the ledger as plain dictionaries, with status and claim result.

    Keys: `id`, `title`, `family`, `paper`, `base`, `status`, `verdict`, `reason`, `effect`, `interval`,
    `p` (one-sided), `survives_holm` (Holm's correction over all claims), `stale`, `doubt` (what a later review found
    against the result); those about the claim are None (`stale`: False, `doubt`: "") where it has no result.

    Raises:
        RecipeError: the family is unknown.
    """
    if family is not None and family not in FAMILIES:
        raise RecipeError(
            f"unknown family '{family}'{did_you_mean(family, FAMILIES)} The families are: {', '.join(FAMILIES)}"
        )
    decided = results.results()
    return [describe(row, decided) for row in rows() if family in (None, row.family)]


def describe(row: System, decided: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Return one row as a plain dictionary, see `systems`."""
    decided = results.results() if decided is None else decided
    result = decided.get(row.id, {})
    return {
        **{key: getattr(row, key) for key in ("id", "title", "family", "paper", "base")},
        "status": status(row, decided),
        **{key: result.get(key) for key in ("verdict", "reason", "effect", "interval", "p", "survives_holm")},
        "stale": bool(result.get("stale", False)),
        "doubt": result.get("doubt", ""),
    }


def claimed() -> list[dict[str, Any]]:
    """Return every claim that can be checked, those of no single system last, as `systems` does but for `status`."""
    decided = results.results()
    found = [describe(row, decided) for row in (*rows(), *claims()) if exists(row.claim)]
    return [{key: value for key, value in row.items() if key != "status"} for row in found]


@functools.cache
def _tables() -> dict[str, list[dict[str, Any]]]:
    with (_PACKAGE / "systems.toml").open("rb") as file:
        return tomllib.load(file)


def load_path(path: str) -> Any:
    """Import what a `module:Class` path names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def method_path(id: str) -> str:
    """Return the `module:Class` path of a system's method or objective.

    Raises:
        RecipeError: the id is unknown, or the system has no code yet.
    """
    row = find(id)
    if row.code is None or not exists(row.code):
        raise RecipeError(f"'{id}' ({row.title}) is planned and has no code yet; 'attar systems' shows what works")
    return row.code


def method_class(id: str) -> type:
    """Return the method or objective class of a system, importing its module; raises what `method_path` does."""
    cls: type = load_path(method_path(id))
    return cls


def claim_path(id: str) -> str:
    """Return the `module:Class` path of a system's claim, or of one that belongs to no single system.

    Raises:
        RecipeError: the id is unknown, or the system has no claim yet.
    """
    known = {row.id: row for row in (*rows(), *claims())}
    having = {row.id: row.claim for row in known.values() if row.claim is not None and exists(row.claim)}
    if id not in known:
        raise RecipeError(f"there is no claim '{id}'{did_you_mean(id, having)} 'attar claim' lists all")
    if id not in having:
        raise RecipeError(f"'{id}' ({known[id].title}) has no claim to check; 'attar claim' lists all")
    return having[id]


def claim_class(id: str) -> type:
    """Return the claim class of an id, importing its module; raises what `claim_path` does."""
    cls: type = load_path(claim_path(id))
    return cls


def id_of(cls: type) -> str | None:
    """Return the id of the row whose method, objective or claim is `cls`; None for a class outside the ledger."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((row.id for row in rows() if path in (row.method, row.objective, row.claim)), None)

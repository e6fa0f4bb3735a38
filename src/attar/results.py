"""Results of claims: where they lie, whether they still speak of today's code, and what luck would explain.

The ledger and the report read results from here; nothing in this module imports torch, scipy or a claim.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attar import files
from attar.errors import DamagedFile

FAMILY_ALPHA = 0.025  # one-sided, over all claims with a result: the same 2.5 % that a 95 % interval grants one claim

_PACKAGE = Path(__file__).parent
_MEND = "restore it from git or run the claim again"


def directory() -> Path:
    """Return the folder of the result files: `results/claims` of a source checkout, else the copy in the package."""
    return _PACKAGE.parents[1] / "results" / "claims" if in_checkout() else _PACKAGE / "claims" / "results"


def in_checkout() -> bool:
    """Say whether this package is imported from a source checkout, where results are written beside the sources."""
    return _PACKAGE.parent.name == "src" and (_PACKAGE.parents[1] / "pyproject.toml").is_file()


def results(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the result of each claim by id, with `stale`, `doubt` and `survives_holm` (None without a p) added.

    A stale result keeps its numbers but no longer decides anything and takes no part in Holm's correction. `doubt` is
    what a later review found against it, "" where nothing; the next run of the claim takes it away.

    Raises:
        DamagedFile: a file is not the result of a claim.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((folder or directory()).glob("*.json")):
        if "." in file.stem:  # ID.freeze.json
            continue
        result = read(file)
        if wrong := _malformed(result):
            raise DamagedFile(f"{file}: '{wrong}' is not as a claim writes it; {_MEND}")
        doubt = doubt_file(file)
        told = doubt.read_text(encoding="utf-8").strip() if doubt.exists() else ""
        found[file.stem] = {**result, "stale": bool(reasons_stale(result)), "doubt": told}
    marks = holm({id: r["p"] for id, r in found.items() if r.get("p") is not None and not r["stale"]})
    return {id: {**result, "survives_holm": marks.get(id)} for id, result in found.items()}


def doubt_file(file: Path) -> Path:
    """Return where stands what a review found against a result file."""
    return file.with_suffix(".doubt.md")


def read(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        DamagedFile: the file does not hold one.
    """
    try:
        return files.read_object(file)
    except DamagedFile as error:
        raise DamagedFile(f"{error}; {_MEND}") from None


def is_stale(result: Mapping[str, Any]) -> bool:
    """Say whether the claim's files or a method's version changed since this result was computed."""
    return bool(reasons_stale(result))


def reasons_stale(result: Mapping[str, Any]) -> list[str]:
    """Return what changed since a result was computed: claim files by SHA-256, methods by `version`."""
    changed = [f"{module} was edited" for module, sha in result.get("sources", {}).items() if source_sha(module) != sha]
    for id, used in result.get("methods", {}).items():
        now = method_version(used["path"])
        if now != used["version"]:
            changed.append(f"'{id}' went from version {used['version']} to {now}")
    return changed


def source_sha(module: str) -> str | None:
    """Return the SHA-256 of a module's source file, without importing it; None if it is gone."""
    file = _source(module)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file else None


def source_text(module: str) -> str | None:
    """Return the source of a module, without importing it; None if it is gone."""
    file = _source(module)
    return file.read_text(encoding="utf-8") if file else None


def method_version(path: str) -> int | None:
    """Return the `version` of the class that a `module:Class` path names; None if there is no such class.

    Read from the source, so that listing verdicts loads no torch: of the class, or of the first base that writes one,
    in whichever module it stands.
    """
    module, _, name = path.partition(":")
    file = _source(module)
    if file is None:
        return None
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return method_version(f"{node.module}:{alias.name}")
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = (f"{module}:{base.id}" for base in node.bases if isinstance(base, ast.Name))
            written = (_written_version(node), *map(method_version, bases))
            return next((version for version in written if version is not None), None)
    return None


def holm(p_values: Mapping[str, float], alpha: float = FAMILY_ALPHA) -> dict[str, bool]:
    """Return which one-sided p survive Holm's step-down correction at `alpha` over the whole family.

    Sorted upwards, the k-th of m (from 0) survives while p <= alpha / (m - k); the first that does not ends it.

    >>> holm({"a": 0.001, "b": 0.02, "c": 0.012})
    {'a': True, 'c': True, 'b': True}
    >>> holm({"a": 0.001, "b": 0.02, "c": 0.013})
    {'a': True, 'c': False, 'b': False}
    """
    marks: dict[str, bool] = {}
    alive = True
    for rank, (id, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        alive = alive and p <= alpha / (len(p_values) - rank)
        marks[id] = alive
    return marks


def _malformed(result: Mapping[str, Any]) -> str | None:
    """Return the first key of a result whose value the ledger could not read."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def pair(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(end is None or number(end) for end in value)

    def texts(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())

    def methods(value: Any) -> bool:
        used = value.values() if isinstance(value, dict) else [None]
        return all(isinstance(one, dict) and isinstance(one.get("path"), str) and "version" in one for one in used)

    def text(value: Any) -> bool:
        return isinstance(value, str)

    said = {"verdict": text, "reason": text, "effect": number, "p": number, "interval": pair}  # or null
    wrong = [key for key, fine in said.items() if result.get(key) is not None and not fine(result[key])]
    wrong += [key for key, fine in (("sources", texts), ("methods", methods)) if not fine(result.get(key, {}))]
    return wrong[0] if wrong else None


def _written_version(node: ast.ClassDef) -> int | None:
    for line in node.body:
        target = (
            line.target
            if isinstance(line, ast.AnnAssign)
            else line.targets[0]
            if isinstance(line, ast.Assign)
            else None
        )
        value = line.value if isinstance(line, ast.AnnAssign | ast.Assign) else None
        named = isinstance(target, ast.Name) and target.id == "version"
        if named and isinstance(value, ast.Constant) and isinstance(value.value, int):
            return value.value
    return None


def _source(module: str) -> Path | None:
    """Return the file of a module of this package, or of one outside it that is loaded (a claim under test).

    Nothing else: results name modules, and what a file names must not be looked for, let alone imported.
    """
    package, *parts = module.split(".")
    if package == "attar" and all(part.isidentifier() for part in parts):
        place = _PACKAGE.joinpath(*parts)
        return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file and Path(file).is_file() else None

"""What a claim is frozen by, and which of its jobs an edit makes void."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from attar import files, ledger, results
from attar.claims.claim import Claim
from attar.spec import digest

# Stated by the file, but without a say in what an arm computes: changing them makes a new version of the claim (another
# hash, the old result listed under `earlier`), and jobs that are done stay done.
_DECLARED = {
    "constructed",
    "currency",
    "delta",
    "expects",
    "fixed",
    "grids",
    "limits",
    "may_extend",
    "origin",
    "precondition",
    "primary",
    "says",
    "secondary",
    "seeds",
    "title",
    "trial_seeds",
    "tuning_seeds",
    "underpowered",
}


def fingerprint(cls: type[Claim]) -> dict[str, Any]:
    """Return what freezes a claim: `sources` (module: SHA-256), `methods` (id: path and version) and their `hash`."""
    sources = {module: results.source_sha(module) for module in _modules(cls)}
    methods = _methods(cls)
    return {"sources": sources, "methods": methods, "hash": digest({"sources": sources, "methods": methods})}


def jobs_hash(cls: type[Claim]) -> str:
    """Return the hash of what an arm computes: the claim's code without its declarations, and the methods."""
    code = {module: _code(module) for module in _modules(cls)}
    return digest({"claim": f"{cls.__module__}:{cls.__qualname__}", "code": code, "methods": _methods(cls)})


def freeze_file(cls: type[Claim], folder: Path) -> Path:
    """Return where the frozen choices of a claim lie in a results folder."""
    return folder / f"{cls.id}.freeze.json"


def frozen(cls: type[Claim], file: Path) -> dict[str, Any] | None:
    """Return the frozen choices, if they were frozen from the claim and the methods as they are now."""
    if not file.exists():
        return None
    record: dict[str, Any] = results.read(file)
    return record if record.get("hash") == fingerprint(cls)["hash"] else None


def freeze(file: Path, record: dict[str, Any]) -> None:
    """Write the choices that verdict seeds will be run with."""
    files.write_json(file, record)


def _modules(cls: type[Claim]) -> list[str]:
    own = {c.__module__ for c in inspect.getmro(cls) if issubclass(c, Claim) and c is not Claim}
    return sorted({*own, *cls.uses})


def _methods(cls: type[Claim]) -> dict[str, dict[str, Any]]:
    paths = {id: ledger.find(id).code for id in cls.methods}
    return {id: {"path": path, "version": results.method_version(path)} for id, path in paths.items() if path}


def _code(module: str) -> str:
    text = results.source_text(module)
    return ast.dump(_Stripped().visit(ast.parse(text))) if text else ""


class _Stripped(ast.NodeTransformer):
    """Leaves out docstrings, and class fields that have no say in what an arm computes."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [line for line in node.body if not _declares(line)]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else node


def _declares(line: ast.stmt) -> bool:
    targets = line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id in _DECLARED for target in targets)

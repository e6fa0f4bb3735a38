"""Attar distils: a big data set into a small one, a big model into a small one, a slow sampler into a fast one."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "run": "attar.api",
    "evaluate": "attar.api",
    "compare": "attar.api",
    "claim": "attar.api",
    "export": "attar.api",
    "load": "attar.artifacts",
    "sample": "attar.sampling",
    "systems": "attar.ledger",
    "AttarError": "attar.errors",
    "method": "attar.spec",
}

__all__ = [
    "AttarError",
    "__version__",
    "claim",
    "compare",
    "evaluate",
    "export",
    "load",
    "method",
    "run",
    "sample",
    "systems",
]

if TYPE_CHECKING:
    from attar.api import claim, compare, evaluate, export, run
    from attar.artifacts import load
    from attar.errors import AttarError
    from attar.ledger import systems
    from attar.sampling import sample
    from attar.spec import method


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import attar` stays free of torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'attar' has no attribute '{name}'")


class _Face(types.ModuleType):
    """The package, whose public names win over submodules of the same name (`attar.run` is a function)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __dir__() -> list[str]:
    return sorted(__all__)

"""The execution plan: threads, chunks, compilation. Chosen once, from a table, and stored with the run."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from attar import files
from attar.errors import RecipeError
from attar.spec import build, fields, spec, to_json

T = TypeVar("T")

COLUMNS = ("threads", "chunk", "compile", "compile_after", "workers")  # of a table of plans


@spec
class Plan:
    """How work is cut for a device. It changes speed and rounding, never what is computed."""

    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(1, ge=1)  # of one process
    chunk: int = Field(64, ge=1)  # images that go through a network together
    compile: bool = False
    compile_after: int = Field(1_000_000, ge=0)  # images through a network from which compiling pays; fewer stay eager
    workers: int = Field(1, ge=1)  # processes that train networks side by side

    def compiles(self, images: int) -> bool:
        """Return whether work that sends so many images through a network in one process is compiled.

        Compiling costs some fifteen seconds, so it must pay for itself. The rule knows the work, not the clock: a run
        that goes on after a kill decides as it did when it started.
        """
        return self.compile and images >= self.compile_after

    def compiled(self, function: Callable[..., T], images: int) -> Callable[..., T]:
        """Return the function compiled for static shapes where `compiles(images)`, else the function itself."""
        if not self.compiles(images):
            return function
        import torch

        # by default compiled kernels lie in the temporary folder, which a restart of the machine empties
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(files.home() / "compiled"))
        return torch.compile(function, dynamic=False)


def choose(size: int = 0, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Return the plan for images of `size` pixels a side on the device asked for (default: the one that is there).

    The calibrated table of this machine (`ATTAR_HOME/plans.toml`) goes before the shipped one.

    Raises:
        RecipeError: the device is not there, or an override does not validate.
    """
    chosen = {key: value for key, value in (overrides or {}).items() if value is not None}
    device = str(chosen.setdefault("device", default_device()))
    _check_device(device)
    row = next(r for r in _tables() if r["device"] == device.split(":", maxsplit=1)[0] and size <= r["max_size"])
    values = {f.name: row.get(f.name, f.default) for f in fields(Plan) if f.name in COLUMNS}  # a table may be older
    cores = available_cores()
    values["threads"] = min(values["threads"], cores)
    values["workers"] = max(1, min(values["workers"], cores // values["threads"]))
    values["compile"] = values["compile"] and has_compiler()
    return build(Plan, {**values, **chosen}, name="plan")


def store(folder: Path, plan: Plan) -> None:
    """Keep the plan of a run's first start, so that later starts use the same."""
    files.write_json(folder / "plan.json", to_json(plan))


def stored(folder: Path) -> Plan | None:
    """Return the plan of a run's first start, if it had one.

    Raises:
        RecipeError: it does not validate, or its device is not there.
    """
    path = folder / "plan.json"
    if not path.exists():
        return None
    plan = build(Plan, files.read_object(path), name="plan")
    try:
        _check_device(plan.device)
    except RecipeError as error:
        raise RecipeError(
            f"{folder} was begun on device '{plan.device}', which is not here; go on where it is, or choose another "
            "folder with out=FOLDER"
        ) from error
    return plan


def available_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_device() -> str:
    """Return `cuda` where torch sees one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has_compiler() -> bool:
    """Return whether a C++ compiler, which torch.compile needs, is on the path."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def _check_device(device: str) -> None:
    import torch

    kind = device.split(":", maxsplit=1)[0]
    if kind not in {"cpu", "cuda"}:
        raise RecipeError(f"device '{device}' is not known; use device=cpu or device=cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device=cuda was asked for, but torch sees no CUDA device; use device=cpu")


def _tables() -> list[dict[str, Any]]:
    shipped = tomllib.loads(resources.files("attar.run").joinpath("plans.toml").read_text())["plan"]
    mine = files.home() / "plans.toml"
    return (tomllib.loads(mine.read_text())["plan"] if mine.exists() else []) + shipped

"""Running a method in a folder, and stages: cached child runs that many runs share."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from attar import files
from attar.artifacts import load
from attar.errors import AttarError
from attar.progress import tell
from attar.run.plan import Plan
from attar.run.provenance import provenance
from attar.run.run import Run
from attar.spec import digest, to_json


def execute(run: Run, method: Any, inputs: Mapping[str, Any]) -> Any:
    """Call a method on an open run, save its artifact, and note in run.json how it went; return the artifact."""
    began = time.monotonic()
    record = run.first(lambda: _started(run))
    artifact = method(run, **inputs)
    run.tell_skipped()
    artifact.parents = {**artifact.parents, **run.parents}
    record |= {
        "state": "partial" if run.partial else "finished",
        "seconds": round(record["seconds"] + time.monotonic() - began, 3),
        "fingerprint": artifact.fingerprint,
    }
    run.first(lambda: _keep(run, artifact, record))
    if not run.partial:
        run.forget()
    return artifact


def stage(parent: Run, name: str, method: Any, seed: int | None, inputs: Mapping[str, Any]) -> Any:
    """Return the artifact of a stage from the cache, or run it; see `Run.stage`."""
    key = stage_key(method, seed, inputs, parent.plan, copy=parent.copy)
    folder = files.home() / "stages" / key
    with contextlib.ExitStack() as exits:
        if parent.first(lambda: _claim(folder, exits)):
            return load(folder / "artifact")
        scope = [] if seed is not None else [_path(method)]  # a shared stage must not draw what its user draws
        number = parent.copy if seed is None else seed
        title = f"{parent.title} {name}".strip()
        child = Run(
            folder,
            seed=number,
            plan=parent.plan,
            recipe=key,
            time=parent.time_left,
            copy=parent.copy,
            checkpoint_seconds=parent.checkpoint_seconds,
            title=title,
            scope=scope,
        )
        with child:
            artifact = execute(child, method, inputs)
        parent.partial = parent.partial or child.partial
    return artifact


def stage_key(method: Any, seed: int | None, inputs: Mapping[str, Any], plan: Plan, copy: int = 0) -> str:
    """Return the hex key of a stage: method, version, fields, seed or copy, inputs, device, plan, torch."""
    return digest(
        {
            "method": _path(method),
            "version": method.version,
            "fields": to_json(method),
            "seed": "shared" if seed is None else seed,
            "copy": copy,
            "inputs": {name: fingerprint(value) for name, value in inputs.items()},
            "device": plan.device.split(":")[0],
            "plan": {k: v for k, v in to_json(plan).items() if k not in {"device", "workers"}},
            "torch": torch.__version__,
        }
    )[:40]


def fingerprint(value: Any) -> Any:
    """Return what identifies an input: its fingerprint, a module's weights' fingerprint, or a plain value itself.

    Raises:
        TypeError: the value has none of these.
    """
    if isinstance(known := getattr(value, "fingerprint", None), str):
        return known
    if isinstance(value, torch.nn.Module):
        from attar.artifacts import fingerprint_of

        return fingerprint_of(value.state_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be the input of a stage: it has no fingerprint")


def _path(method: Any) -> str:
    return f"{type(method).__module__}:{type(method).__qualname__}"


def _started(run: Run) -> dict[str, Any]:
    """Note in run.json that the run has started once more; return the note."""
    path = run.folder / "run.json"
    record = files.read_object(path) if path.exists() else {}
    starts, seconds = (
        value if isinstance(value := record.get(key), int | float) else 0 for key in ("starts", "seconds")
    )
    record |= {"state": "running", "starts": starts + 1, "seconds": seconds, "provenance": provenance()}
    files.write_json(path, record)
    return record


def _keep(run: Run, artifact: Any, record: dict[str, Any]) -> None:
    """Save the artifact, then note how the run went."""
    artifact.save(run.folder / "artifact")
    files.write_json(run.folder / "run.json", record)


def _claim(folder: Path, exits: contextlib.ExitStack) -> bool:
    """Lock a stage's folder and say whether its artifact is there; a damaged one is removed, to be made again."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    exits.enter_context(FileLock(folder.with_suffix(".lock")))
    try:
        path = folder / "run.json"
        if path.exists() and files.read_object(path).get("state") == "finished":
            load(folder / "artifact")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of a run killed when all was done but this
            return True
    except AttarError as error:
        tell(f"a cached stage is damaged and is made again: {error}")
        shutil.rmtree(folder)
    return False

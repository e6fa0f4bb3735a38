"""Processes that work on one run, forked from a test: what a launcher starts, without its seconds."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from attar.errors import AttarError, Interrupted
from attar.run import Plan, Run


def as_group(world: int, folder: Path, function: Callable[[Run], Any], **settings: Any) -> list[Any]:
    """Run `function(run)` in `world` forked processes that form a gloo group; return what each gave.

    What it gives are tensors and plain values. An error or a signal that ends a process comes back as its message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    children = [os.fork() or _work(rank, world, folder, function, settings) for rank in range(world)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _work(rank: int, world: int, folder: Path, function: Callable[[Run], Any], settings: dict[str, Any]) -> int:
    code = 1
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
        try:
            with Run(folder / "run", plan=Plan(), **settings) as run:
                given = function(run)
            together = True
        except (AttarError, Interrupted) as error:
            given, together = str(error), False
        torch.save(given, folder / f"{rank}.pt")
        if together:  # else the others may wait for what will not come: leaving tells them
            with contextlib.suppress(RuntimeError):
                distributed.barrier()
            distributed.destroy_process_group()
        code = 0
    finally:
        os._exit(code)

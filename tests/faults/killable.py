"""A process that runs a method and may be killed at any moment; it starts in milliseconds from a warm server."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import tiny
from attar import ledger

context = multiprocessing.get_context("forkserver")
# What takes seconds to import: torch's first optimizer imports its compiler.
PRELOAD = [
    "torch",
    "torch._dynamo",
    "sklearn.cluster",
    "attar.api",
    "attar.recipes",
    "attar.report",
    "attar.run.stage",
    "attar.data",
    "PIL.Image",
]
context.set_forkserver_preload(
    [*PRELOAD, *{row.method.partition(":")[0] for row in ledger.rows() if ledger.exists(row.method)}]
)


def start(id: str, settings: dict[str, Any], home: Path, interval: float) -> Any:
    """Run a method in a process of its own, with its own caches; return the process."""
    tiny.one_worker(home)  # those of a killed process would wait for work, and the test for them
    process = context.Process(target=_work, args=(id, settings, str(home), interval))
    process.start()
    return process


def _work(id: str, settings: dict[str, Any], home: str, interval: float) -> None:
    os.environ.update(ATTAR_HOME=home, ATTAR_CHECKPOINT_SECONDS=str(interval), ATTAR_PROGRESS="off")
    import torch

    from attar import api
    from attar.errors import AttarError, Interrupted

    torch.set_num_threads(1)
    try:
        api.run_result(id, **settings)
    except (AttarError, Interrupted) as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)

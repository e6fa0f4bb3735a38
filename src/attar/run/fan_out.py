"""Fan-out over local processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from attar.run import progress

T = TypeVar("T")


def fan_out(name: str, function: Callable[[T], Any], items: Sequence[T], *, workers: int, threads: int) -> list[Any]:
    """Apply a picklable function to items in processes of `threads` threads each; keep the order, show progress.

    One worker, or one item, runs here, with no process started.
    """
    import joblib

    workers = min(workers, len(items))
    call = functools.partial(_single, function, threads, workers > 1)
    results: list[Any] = []
    with progress.task(name, 0, len(items)) as show:
        if workers <= 1:
            outcome = (call(item) for item in items)
        else:
            pool = joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator")
            outcome = pool(joblib.delayed(call)(item) for item in items)
        for result in outcome:
            results.append(result)
            show(len(results))
    return results


def _single(function: Callable[[T], Any], threads: int, worker: bool, item: T) -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    if worker:  # a worker's own bars would scribble over its parent's
        os.environ["ATTAR_PROGRESS"] = "off"
    try:
        return function(item)
    finally:
        torch.set_num_threads(before)

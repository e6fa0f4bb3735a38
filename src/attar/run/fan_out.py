"""Fan-out over local processes, of which this one is the first."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import queue
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from attar.run import keys, progress
from attar.run.memory import keep_freed_memory

T = TypeVar("T")

_GRACE_SECONDS = 2  # for what still runs when an item failed or a signal came: to end, or to save its state
_IDLE_SECONDS = 120  # a worker waits this long for the next fan-out, which then starts at once


class Shared(Generic[T]):
    """A big value that many items refer to: it is sent to a worker process once, not with every item."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._file: Path | None = None

    @property
    def value(self) -> T:
        """The value itself."""
        return self._value

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        import joblib

        if self._file is None:
            descriptor, name = tempfile.mkstemp(prefix="attar-shared-")
            os.close(descriptor)
            weakref.finalize(self, Path(name).unlink, missing_ok=True)
            joblib.dump(self._value, name)
            self._file = Path(name)
        return _received, (str(self._file),)


@functools.lru_cache(maxsize=4)
def _received(file: str) -> Shared[Any]:
    import joblib

    return Shared(joblib.load(file))


def fan_out(name: str, function: Callable[[T], Any], items: Sequence[T], *, workers: int, threads: int) -> list[Any]:
    """Apply a picklable function to items in `workers` processes of `threads` threads; keep the order, show progress.

    This process is one of the workers, so that nothing waits for the others to start and import torch. Which process
    takes which item changes no result: global generators are seeded by the item's position. What is big and common to
    several items travels as `Shared`. An error in one item ends the fan-out and its processes.
    """
    workers = min(workers, len(items))
    call = functools.partial(_single, function, threads)
    with progress.task(name, 0, len(items)) as show:
        if workers > 1:
            return _side_by_side(call, items, workers, show)
        results = []
        for index, item in enumerate(items):
            results.append(call(index, item))
            show(len(results))
        return results


def _side_by_side(
    call: Callable[[int, T], Any], items: Sequence[T], workers: int, show: Callable[[int], None]
) -> list[Any]:
    from joblib.externals.loky import get_reusable_executor

    pool = get_reusable_executor(max_workers=workers - 1, timeout=_IDLE_SECONDS, env={"ATTAR_PROGRESS": "off"})
    waiting = collections.deque(range(len(items)))  # whoever is free takes the next
    finished: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
    results: dict[int, Any] = {}
    running: set[Future[Any]] = set()

    def take() -> int | None:
        with contextlib.suppress(IndexError):  # asking first would race with the pool's thread
            return waiting.popleft()
        return None

    def feed() -> None:
        if (index := take()) is not None:
            future = pool.submit(call, index, items[index])
            running.add(future)
            future.add_done_callback(functools.partial(end, index))

    def end(index: int, future: Future[Any]) -> None:
        running.discard(future)
        finished.put((index, future))
        feed()

    try:
        for _ in range(workers - 1):
            feed()
        while len(results) < len(items):
            if (mine := take()) is not None:
                results[mine] = call(mine, items[mine])
            while len(results) < len(items) and (mine is None or not finished.empty()):
                index, future = finished.get()
                results[index] = future.result()
                show(len(results))
            show(len(results))
    except BaseException:
        waiting.clear()
        if wait(set(running), timeout=_GRACE_SECONDS).not_done:
            pool.shutdown(wait=True, kill_workers=True)
        raise
    return [results[index] for index in range(len(items))]


def _single(function: Callable[[T], Any], threads: int, index: int, item: T) -> Any:
    import torch

    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    keys.seed_globals(keys.key(0, ["fan-out"], "globals", (index,)))
    try:
        return function(item)
    finally:
        torch.set_num_threads(before)

"""Fan-out over local processes, of which this one is the first."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import queue
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from attar import progress
from attar.errors import AttarError
from attar.run import keys
from attar.run.memory import keep_freed_memory

T = TypeVar("T")

_GRACE_SECONDS = 2  # for what still runs when an item failed or a signal came: to end, or to save its state
_IDLE_SECONDS = 120  # a worker waits this long for the next fan-out, which then starts at once
_DEATHS = 3  # of processes that worked on an item, before it is given up


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
    several items travels as `Shared`. An error in one item ends the fan-out and its processes. The death of a worker
    process (memory ran out, a signal) ends neither: its item is run again, in another worker.

    Raises:
        AttarError: the workers of an item died three times.
    """
    workers = min(workers, len(items))
    call = functools.partial(_single, function, threads)
    with progress.task(name, 0, len(items)) as show:
        if workers > 1:
            return _side_by_side(_Workers(name, call, items, workers - 1), show)
        results = []
        for index, item in enumerate(items):
            results.append(call(index, item))
            show(len(results))
        return results


class _Workers(Generic[T]):
    """The other processes and the items: whichever process is free takes the next."""

    def __init__(self, name: str, call: Callable[[int, T], Any], items: Sequence[T], count: int) -> None:
        self.name, self.call, self.items, self.count = name, call, items, count
        self.waiting = collections.deque(range(len(items)))
        self.finished: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        self._again: collections.deque[int] = collections.deque()  # whose worker died: this process must not be next
        self._deaths: collections.Counter[int] = collections.Counter()
        self._running: set[Future[Any]] = set()
        self._renew()

    def take(self) -> int | None:
        """Return an item for this process to work on, if one waits."""
        return _popped(self.waiting)

    def fill(self) -> None:
        """Give every process that is free an item."""
        try:
            while len(self._running) < self.count and self._feed():
                pass
        except BrokenExecutor:
            if not self._running:  # one died at rest; else `lost` is about to be told
                self._renew()
                self.fill()

    def lost(self, index: int, error: BaseException) -> None:
        """Let an item whose worker died be run again.

        Raises:
            AttarError: that happened too often.
        """
        self._deaths[index] += 1
        where = f"item {index + 1} of {len(self.items)} of '{self.name}'"
        reason = str(error).strip().partition("\n")[0]
        if self._deaths[index] == _DEATHS:
            raise AttarError(
                f"{where} is given up: its worker process died {_DEATHS} times ({reason}). Perhaps memory ran out: "
                "close other programs or choose a smaller setting; the same command goes on from the last checkpoint"
            ) from error
        progress.tell(f"the worker process of {where} died and the item is run again")
        self._again.append(index)
        self._renew()

    def end(self) -> None:
        """Start nothing more; end what runs, after a moment to save its state."""
        self.waiting.clear()
        self._again.clear()
        if wait(set(self._running), timeout=_GRACE_SECONDS).not_done:
            self._pool.shutdown(wait=True, kill_workers=True)

    def _renew(self) -> None:
        """Start the worker processes, or take up those of an earlier fan-out; dead ones are replaced."""
        from joblib.externals.loky import get_reusable_executor

        # loky replaces a worker that has grown, loses nothing, and warns all the same, from a thread of its own
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
        quiet = {"ATTAR_PROGRESS": "off"}
        self._pool = get_reusable_executor(max_workers=self.count, timeout=_IDLE_SECONDS, env=quiet)

    def _feed(self) -> bool:
        source = self._again or self.waiting
        if (index := _popped(source)) is None:
            return False
        try:
            future = self._pool.submit(self.call, index, self.items[index])
        except BrokenExecutor:
            source.appendleft(index)
            raise
        self._running.add(future)
        future.add_done_callback(functools.partial(self._ended, index))
        return True

    def _ended(self, index: int, future: Future[Any]) -> None:
        """Keep the process busy without asking this one, which may be at work on an item of its own."""
        self._running.discard(future)
        self.finished.put((index, future))
        # To ask a broken pool for more would wait for its lock, which renewing it holds while it waits for this thread.
        if not isinstance(future.exception(), BrokenExecutor):
            with contextlib.suppress(BrokenExecutor):
                self._feed()


def _popped(items: collections.deque[int]) -> int | None:
    with contextlib.suppress(IndexError):  # asking first would race with the pool's thread
        return items.popleft()
    return None


def _side_by_side(workers: _Workers[T], show: Callable[[int], None]) -> list[Any]:
    results: dict[int, Any] = {}
    total = len(workers.items)
    try:
        while len(results) < total:
            workers.fill()
            if (mine := workers.take()) is not None:
                results[mine] = workers.call(mine, workers.items[mine])
            while len(results) < total and (mine is None or not workers.finished.empty()):
                index, future = workers.finished.get()
                if isinstance(error := future.exception(), BrokenExecutor):
                    workers.lost(index, error)
                    workers.fill()
                else:
                    results[index] = future.result()
                show(len(results))
            show(len(results))
    except BaseException:
        workers.end()
        raise
    return [results[index] for index in range(total)]


def _single(function: Callable[[T], Any], threads: int, index: int, item: T) -> Any:
    from attar.run import guards

    keep_freed_memory()
    keys.seed_globals(keys.key(0, ["fan-out"], "globals", (index,)))
    with guards.threads(threads):
        return function(item)

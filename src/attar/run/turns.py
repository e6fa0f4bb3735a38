"""Work side by side in threads of this process."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from attar import progress
from attar.run import guards
from attar.run.memory import keep_freed_memory

T = TypeVar("T")
Turns = Generator[int, None, T]  # yields the steps done so far whenever another may go on; returns its result

_SHOW_SECONDS = 0.1


def take_turns(name: str, items: Sequence[Turns[T]], steps: Sequence[int], *, workers: int, threads: int) -> list[T]:
    """Run generators to their ends, `workers` at a time, and return what they return, in order.

    Nothing has to start or be sent, and torch frees the interpreter while it computes: this is the way for many short
    computations. Of the items at work the one that is furthest behind goes next, so that all workers end together
    whatever the number of items; fewer than twice as many items as workers have begun and not ended. Items must not
    draw from global generators, which they share. An error in one ends all.

    Args:
        name: of the bar.
        items: what to run.
        steps: of each item, for the bar.
        workers: how many threads of Python work.
        threads: of torch in each of them.
    """
    workers = max(1, min(workers, len(items)))
    turns = _Turns(items, workers)
    keep_freed_memory()
    with progress.task(name, 0, sum(steps)) as show, guards.threads(threads):
        if workers == 1:
            turns.work(threads, show)
        else:
            _in_threads(turns, workers, threads, show)
    return [turns.results[index] for index in range(len(items))]


def _in_threads(turns: _Turns[T], workers: int, threads: int, show: Callable[[int], None]) -> None:
    """Let threads work while this one shows how far they are and answers signals."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(turns.work, threads) for _ in range(workers)]
        try:
            while wait(futures, _SHOW_SECONDS).not_done:
                show(turns.done)
        finally:
            turns.ended.set()
    for future in futures:
        future.result()


class _Turns(Generic[T]):
    """The items that wait for a turn. A group of as many items as workers is ended before the next one begins."""

    def __init__(self, items: Sequence[Turns[T]], workers: int) -> None:
        self.items = items
        self.results: dict[int, T] = {}
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._steps = [0] * len(items)
        last = max(0, len(items) // workers - 1)  # the last group takes in what is left over
        self._waiting = [(min(index // workers, last), 0, index) for index in range(len(items))]

    @property
    def done(self) -> int:
        """The steps done in all items."""
        return sum(self._steps)

    def work(self, threads: int, show: Callable[[int], None] = lambda done: None) -> None:
        """Give one item after the other a turn until none waits. What a busy item leaves, its own worker takes up."""
        try:
            with guards.threads(threads):
                while not self.ended.is_set() and self._waiting:
                    self._turn()
                    show(self.done)
        except BaseException:
            self.ended.set()
            raise

    def _turn(self) -> None:
        with self._lock:
            if not self._waiting:
                return
            group, _, index = heapq.heappop(self._waiting)
        try:
            self._steps[index] = next(self.items[index])
        except StopIteration as end:
            self.results[index] = end.value
        else:
            with self._lock:
                heapq.heappush(self._waiting, (group, self._steps[index], index))

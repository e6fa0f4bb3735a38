"""Progress on standard error: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

_PLAIN_SECONDS = 10.0  # between two plain lines
_PATIENCE_SECONDS = 2.0  # nothing is shown for work shorter than this


class Task:
    """One loop on the display."""

    def __init__(self, title: str, done: int, total: int) -> None:
        self.title, self.start, self.done, self.total = title, done, done, total
        self.note = ""
        self.began = time.monotonic()
        self._shown_at = self.began

    def advance(self, done: int, note: str = "") -> None:
        """Say how many steps are done."""
        self.done = done
        self.note = note or self.note
        now = time.monotonic()
        if now - self.began > _PATIENCE_SECONDS and now - self._shown_at > self._interval():
            self._shown_at = now
            self.show()

    def show(self) -> None:
        """Print a plain line."""
        print(f"{self.title}: {self.text()}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the task off the display."""
        if self._shown_at > self.began:
            self.show()

    def text(self) -> str:
        """Return steps, rate, time left and the note."""
        elapsed = max(1e-9, time.monotonic() - self.began)
        rate = (self.done - self.start) / elapsed
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        clock = "-:--" if left == float("inf") else f"{int(left) // 60}:{int(left) % 60:02d}"
        speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step" if rate > 0 else "…"
        return f"{self.done}/{self.total} · {speed} · {clock} left" + (f" · {self.note}" if self.note else "")

    def _interval(self) -> float:
        return _PLAIN_SECONDS


class BarTask(Task):
    """One loop as a bar of rich."""

    def __init__(self, title: str, done: int, total: int) -> None:
        super().__init__(title, done, total)
        self._bar: int | None = None

    def show(self) -> None:
        """Draw the bar."""
        bars = _bars()
        if self._bar is None:
            self._bar = bars.add_task(self.title, total=self.total)
        bars.update(self._bar, completed=self.done, text=self.text())  # type: ignore[arg-type]

    def close(self) -> None:
        """Take the bar off; the last one stops the display."""
        if self._bar is not None:
            bars = _bars()
            self.show()
            bars.stop_task(self._bar)  # type: ignore[arg-type]
            if bars.finished or all(task.finished or task.stop_time for task in bars.tasks):
                bars.stop()
                _LIVE.clear()

    def _interval(self) -> float:
        return 0.1


_LIVE: list = []


def _bars():  # type: ignore[no-untyped-def]
    """Return the one live display, started when first needed."""
    if not _LIVE:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        bars = Progress(*columns, console=Console(stderr=True), refresh_per_second=8)
        bars.start()
        _LIVE.append(bars)
    return _LIVE[0]


@contextlib.contextmanager
def task(title: str, done: int, total: int) -> Iterator[Callable[..., None]]:
    """Show a task while inside; call what is given with the number of steps done (and a note)."""
    if os.environ.get("ATTAR_PROGRESS") == "off":
        yield lambda done, note="": None
        return
    shown = (BarTask if sys.stderr.isatty() else Task)(title, done, total)
    try:
        yield shown.advance
    finally:
        shown.close()

"""Progress on standard error: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_SECONDS = 10.0  # between two plain lines
_BAR_SECONDS = 0.1  # between two drawings of a bar
_PATIENCE_SECONDS = 2.0  # nothing is shown for work shorter than this

_live: list[Progress] = []  # the one display of bars, while there is one


class Show(Protocol):
    """What a task gives: call it with the number of steps done, and a note."""

    def __call__(self, done: int, note: str = "") -> None:
        """Say how many steps are done."""


class Task:
    """One loop on the display, as plain lines."""

    interval = _PLAIN_SECONDS

    def __init__(self, title: str, done: int, total: int) -> None:
        self.title, self.start, self.done, self.total = title, done, done, total
        self.note = ""
        self.began = self._shown_at = time.monotonic()

    def advance(self, done: int, note: str = "") -> None:
        """Say how many steps are done."""
        self.done = done
        self.note = note or self.note
        now = time.monotonic()
        if now - self.began > _PATIENCE_SECONDS and now - self._shown_at > self.interval:
            self._shown_at = now
            self.show()

    def show(self) -> None:
        """Print a plain line."""
        print(f"{self.title}: {self.text()}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show the end of what was shown before."""
        if self._shown_at > self.began:
            self.show()

    def text(self) -> str:
        """Return steps, rate, time left and the note.

        >>> Task("dm match", 0, 100).text()
        '0/100 · … · -:-- left'
        """
        elapsed = max(1e-9, time.monotonic() - self.began)
        rate = (self.done - self.start) / elapsed
        seconds = int((self.total - self.done) / rate) if rate > 0 else None
        clock = "-:--" if seconds is None else f"{seconds // 60}:{seconds % 60:02d}"
        speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step" if rate > 0 else "…"
        return f"{self.done}/{self.total} · {speed} · {clock} left" + (f" · {self.note}" if self.note else "")


class BarTask(Task):
    """One loop as a bar of the live display, which ends with the last of its bars."""

    interval = _BAR_SECONDS

    def __init__(self, title: str, done: int, total: int) -> None:
        super().__init__(title, done, total)
        self._bar: TaskID | None = None

    def show(self) -> None:
        """Draw the bar."""
        bars = _bars()
        if self._bar is None:
            self._bar = bars.add_task(self.title, total=self.total, text="")
        bars.update(self._bar, completed=self.done, text=self.text())

    def close(self) -> None:
        """Let the bar stand as it ended."""
        if self._bar is None:
            return
        self.show()
        bars = _bars()
        bars.stop_task(self._bar)
        if all(bar.stop_time is not None for bar in bars.tasks):
            bars.stop()
            _live.clear()


@contextlib.contextmanager
def task(title: str, done: int, total: int, *, shown: bool = True) -> Iterator[Show]:
    """Show a task while inside; call what is given with the number of steps done (and a note).

    Of the processes that a launcher started the first alone shows anything.
    """
    if not shown or quiet():
        yield _silent
        return
    display = (BarTask if sys.stderr.isatty() else Task)(title, done, total)
    try:
        yield display.advance
    finally:
        display.close()


def quiet() -> bool:
    """Say whether nothing is shown on the way: it was switched off, or another process speaks."""
    return os.environ.get("ATTAR_PROGRESS") == "off" or os.environ.get("RANK", "0") != "0"


def tell(message: str) -> None:
    """Tell the person at the keyboard something that stops nothing, in one line on standard error."""
    line = f"attar: {message}"
    if _live:
        _live[0].console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


def _silent(done: int, note: str = "") -> None:
    """Show nothing."""


def _bars() -> Progress:
    """Return the one live display, started when first needed."""
    if not _live:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        _live.append(Progress(*columns, console=Console(stderr=True), refresh_per_second=8))
        _live[0].start()
    return _live[0]

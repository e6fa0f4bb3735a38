"""SIGINT and SIGTERM: the first one is honoured at the end of a step, after a checkpoint; the second at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from attar.errors import Interrupted

_pending: int | None = None
_in_step = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle the two signals inside; nested uses and other threads leave them as they are."""
    global _pending
    outermost = signal.getsignal(signal.SIGTERM) is not _handle
    if threading.current_thread() is not threading.main_thread() or not outermost:
        yield
        return
    _pending = None
    before = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold a first signal back until `pending()` is asked: a step is running."""
    global _in_step
    before, _in_step = _in_step, True
    try:
        yield
    finally:
        _in_step = before


def pending() -> int | None:
    """Return the signal that waits, if one does."""
    return _pending


def _handle(number: int, frame: FrameType | None) -> None:
    global _pending
    if _in_step and _pending is None:
        _pending = number
        return
    raise Interrupted("stopped; the same command goes on from the last checkpoint", number)

"""SIGINT and SIGTERM: the first one is honoured at the end of a step, after a checkpoint; the second at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from attar.errors import Interrupted


class _Held:
    """What this process holds back: signals come to a process, not to a run."""

    pending: int | None = None
    in_step = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle the two signals inside; nested uses and other threads leave them as they are.

    Raises:
        Interrupted: a signal came that no step has answered.
    """
    nested = signal.getsignal(signal.SIGTERM) is _handle
    if threading.current_thread() is not threading.main_thread() or nested:
        yield
        return
    _Held.pending = None
    before = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        if _Held.pending is not None:  # it came while the last loop was being closed
            raise _stopped(_Held.pending)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold a first signal back until `pending()` is asked: a step is running."""
    before, _Held.in_step = _Held.in_step, True
    try:
        yield
    finally:
        _Held.in_step = before


def pending() -> int | None:
    """Return the signal that waits, if one does."""
    return _Held.pending


def _handle(number: int, frame: FrameType | None) -> None:
    if _Held.in_step and _Held.pending is None:
        _Held.pending = number
        return
    raise _stopped(number)


def _stopped(number: int) -> Interrupted:
    return Interrupted("stopped; the same command goes on from the last checkpoint", number)

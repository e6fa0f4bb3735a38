"""What a run holds while it works: the lock of its folder and its number of threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from attar.errors import AttarError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second process refuses clearly, and a dead one's lock counts for nothing."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = (
            f"another process is working in {folder}; wait for it to end, or choose another folder with out=FOLDER"
        )
        raise AttarError(message) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

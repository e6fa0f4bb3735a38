"""What a run holds while it works: the lock of its folder, its number of threads and how they multiply."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from attar.errors import AttarError
from attar.run.products import fast_products


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second process refuses clearly, and a dead one's lock counts for nothing.

    Raises:
        AttarError: another process holds it, or a part of the folder lies elsewhere.
    """
    _refuse_links(folder)
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


def _refuse_links(folder: Path) -> None:
    """Refuse a folder in which a name leads elsewhere: a run writes, cuts and removes what it finds there."""
    for name in (".lock", "metrics.jsonl", "checkpoints", "artifact"):
        if (folder / name).is_symlink():
            raise AttarError(
                f"{folder / name} is a link, and a run changes nothing outside of its folder; remove the link, or "
                "choose another folder with out=FOLDER"
            )


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside, and multiply by `fast_products`."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with fast_products():
            yield
    finally:
        torch.set_num_threads(before)

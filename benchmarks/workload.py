"""The data, networks and methods that the scripts time: embedded pictures, 10 images a class, 64 real ones a class."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from attar.data import Images, load
from attar.nets import ConvNet
from attar.run import Plan, Run
from attar.run.memory import keep_freed_memory

SHAPES = {14: "F14 (w32 d2, 14 px)", 28: "w32 d3, 28 px"}
IPC, REAL = 10, 64
WARMUP = 3  # steps that do not count: compilation, caches


def images(size: int) -> Images:
    """Return the embedded training set at a size."""
    return load("fashion-mnist-mini" + ("?size=14" if size == 14 else "")).train


def network(size: int) -> ConvNet:
    """Return the spec of the network for a size."""
    return ConvNet(depth=2 if size == 14 else 3, width=32)


class Interleaved(Run):
    """A run whose every step, the engine's part included, is timed in turn with a step of the other way.

    Both run in this one thread, so the time that counts is the process's own: other processes disturb it little.
    """

    def __init__(self, folder: Path, plan: Plan, other: Callable[[], object]) -> None:
        super().__init__(folder, plan=plan, checkpoint_seconds=1e9)
        self.other, self.times = other, list[tuple[float, float]]()

    def loop(self, name: str, steps: int) -> Iterator[int]:
        """Yield the steps of the loop and time them."""
        inner = super().loop(name, steps)
        while True:
            began = time.process_time()
            step = next(inner, None)
            if step is None:
                return
            yield step
            middle = time.process_time()
            self.other()
            if step >= WARMUP:
                self.times.append((middle - began, time.process_time() - middle))


def against(method: Any, data: Images, plan: Plan, other: Callable[[], object]) -> list[tuple[float, float]]:
    """Run a method as users do and return the seconds of its steps beside those of `other`."""
    torch.set_num_threads(1)
    keep_freed_memory()  # for both sides alike
    with tempfile.TemporaryDirectory() as folder:
        run = Interleaved(Path(folder), plan, other)
        with run:
            method(run, data=data)
    return run.times

"""Time this machine once, outside of any run, and choose the rows of its plan table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from attar import progress
from attar.nets import ConvNet
from attar.run import plan
from attar.run.memory import keep_freed_memory

SIZES = {14: 16, 28: 100_000}  # pixels a side that are timed -> largest size that the row stands for
CHUNKS = (32, 64, 128, 256)
IMAGES = 512  # that go through a network in one timing
REPEATS = 3  # their median counts
THREADS_PAY = 1.5  # several threads must be so much faster than one, which leaves the other cores to other networks

Step = Callable[[], object]


def calibrated() -> list[dict[str, Any]]:
    """Return the rows of a plan table, timed on the default device in about a minute, with progress."""
    device = plan.default_device()
    keep_freed_memory()
    with progress.task("calibrate", 0, 3 * len(SIZES)) as show:
        rows: list[dict[str, Any]] = []
        for size, max_size in SIZES.items():
            rows.append(_row(device, size, max_size, lambda done: show(3 * len(rows) + done)))
        return rows


def table_text(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in the shape of the shipped `plans.toml`."""
    lines = [
        "# Timed by 'attar doctor --calibrate'; the shipped table explains the columns. Delete it to go back there."
    ]
    for row in rows:
        lines += ["", "[[plan]]"]
        for name, value in row.items():
            text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else value
            lines.append(f"{name} = {text}")
    return "\n".join(lines) + "\n"


def seconds(step: Step) -> float:
    """Return the median wall-clock time of a step, after one that does not count."""
    step()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _row(device: str, size: int, max_size: int, show: Callable[[int], None]) -> dict[str, Any]:
    """Choose threads first, then the chunk, then from how many images on compiling pays."""
    cores = plan.available_cores()
    by_threads = {count: _timed(device, size, 64, count) for count in {1, cores}}
    threads = cores if by_threads[1] / by_threads[cores] >= THREADS_PAY else 1
    show(1)
    by_chunk = {chunk: _timed(device, size, chunk, threads) for chunk in CHUNKS}
    chunk = min(by_chunk, key=by_chunk.__getitem__)
    show(2)
    compile_after = None
    if plan.has_compiler():
        began = time.perf_counter()
        fast = _timed(device, size, chunk, threads, compiled=True)
        cost = time.perf_counter() - began - (REPEATS + 1) * fast
        if fast < by_chunk[chunk]:
            compile_after = round(max(cost, 0) * IMAGES / (by_chunk[chunk] - fast))
    show(3)
    return {
        "device": device,
        "max_size": max_size,
        "threads": threads,
        "chunk": chunk,
        "compile": compile_after is not None,
        "compile_after": compile_after or 0,
        "workers": 1 if device == "cuda" else max(1, cores // threads),
    }


def _timed(device: str, size: int, chunk: int, threads: int, *, compiled: bool = False) -> float:
    from attar.run import guards

    with guards.threads(threads):
        return seconds(_work(device, size, chunk, compiled=compiled))


def _work(device: str, size: int, chunk: int, *, compiled: bool) -> Step:
    """Return a step that sends `IMAGES` random images through a ConvNet, forward and backward, `chunk` at a time."""
    import torch

    network = ConvNet(depth=2 if size <= 16 else 3, width=32).build(1, size, 10).to(device)
    images = torch.rand(IMAGES, 1, size, size).to(device)

    def mean_square(part: torch.Tensor) -> torch.Tensor:
        return network(part).square().mean()

    loss_of = plan.Plan(compile=compiled, compile_after=0).compiled(mean_square, IMAGES)

    def step() -> None:
        for part in images.split(chunk):
            loss_of(part).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step

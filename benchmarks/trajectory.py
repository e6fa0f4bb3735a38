"""Trajectory matching: a segment against the straightforward formulation, memory at 50 steps, and recording experts.

python -m benchmarks.trajectory
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from attar.artifacts import DistilledSet
from attar.data import Images
from attar.methods.data.trajectory.experts import ExpertRecipe, RecordExperts
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.matching import Backward, Batch, Match, Student, Synthetic, Waypoint, match_segment
from attar.metrics.memory import SavedTensors
from attar.run import SGD, Run, plan
from attar.run.memory import keep_freed_memory
from benchmarks import classic
from benchmarks.measure import HEADER, Ratio, summarise
from benchmarks.workload import IPC, SHAPES, images, network

PAIRS = 12
EXPERTS, BATCH, LR = 10, 256, 0.01
SHORT, LONG = 2, 50  # epochs; the paper's are 50


class Segment:
    """A student's segment on distilled images, ready to be differentiated in any way."""

    def __init__(self, data: Images, steps: int) -> None:
        made = DistilledSet.from_real(data, IPC, torch.Generator().manual_seed(0))
        self.synthetic = Synthetic(made.images.detach(), made.labels)
        self.function = FlatNetwork(network(data.size), data)
        self.start, self.target = (self.function.fresh(torch.Generator().manual_seed(seed)) for seed in (1, 2))
        self.step_size, self.steps = torch.tensor(0.02), steps
        self.other = classic.convnet(data, network(data.size).width, network(data.size).depth)

    def ours(self, mode: Backward = "exact") -> Match:
        """Return the match in one of Attar's ways."""
        batches = [Batch(torch.arange(len(self.synthetic.images)))] * self.steps
        student, waypoints = Student(self.function, self.step_size), [Waypoint(self.steps, self.target)]
        return match_segment(student, self.start, waypoints, batches, self.synthetic, mode=mode)

    def straightforward(self) -> tuple[Tensor, Tensor]:
        """Return the gradients by the papers' formulation."""
        given = (self.other, self.start, self.target, self.synthetic.images, self.synthetic.labels)
        return classic.unrolled_segment(*given, steps=self.steps, step_size=self.step_size)


def segment(steps: int, target: str) -> Ratio:
    """Return how many times as long the straightforward formulation takes; the gradients are held to be equal."""
    made = Segment(images(14), steps)
    found, wanted = made.ours(), made.straightforward()[0]
    torch.testing.assert_close(found.images, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    times = [(_cpu(made.ours), _cpu(made.straightforward)) for _ in range(PAIRS)]
    return summarise(
        f"MTT segment, {steps} steps, {SHAPES[14]}", times, target=target, note="1 thread, exact / unrolled"
    )


def memory(steps: int = 50) -> list[Ratio]:
    """Return peak saved bytes and seconds of `exact` over those of `unroll`."""
    made = Segment(images(14), steps)
    peaks = []
    for mode in ("exact", "unroll"):
        with SavedTensors(exclude=(made.synthetic.images,)) as saved:
            made.ours(mode)
        peaks.append(saved.peak / 1e6)
    times = [(_cpu(made.ours), _cpu(partial(made.ours, "unroll"))) for _ in range(PAIRS // 2)]
    topic, note = f"exact / unrolled, {steps} steps, F14", "most saved tensors at one time"
    return [
        summarise(f"memory of {topic}", [(peaks[0], peaks[1])], target="<= 0.2", note=note, inverse=True, unit="MB"),
        summarise(f"time of {topic}", times, target="<= 1.25", note="1 thread", inverse=True),
    ]


def experts(epochs: int = LONG, pairs: int = 1) -> Ratio:
    """Return how many times as long the classic loop takes for ten experts, by the clock.

    A long recording is compiled for: that counts, as does the start of the processes. A short one is timed warm.
    """
    data = images(14)
    chosen = plan.choose(14, {"device": "cpu"})
    recipe = ExpertRecipe(count=EXPERTS, epochs=epochs, batch=BATCH, optimizer=SGD(lr=LR), augment="none")
    build = partial(classic.convnet, data, network(14).width, network(14).depth)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder, Run(Path(folder), plan=chosen) as run:
            RecordExperts(net=network(14), recipe=recipe)(run, data=data)

    def other() -> None:
        torch.set_num_threads(plan.available_cores())  # torch's default
        classic.experts(data, build, count=EXPERTS, epochs=epochs, batch=BATCH, lr=LR)

    if epochs == SHORT:
        ours(), other()
    with tempfile.TemporaryDirectory() as cold:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cold
        times = [(_clock(ours), _clock(other)) for _ in range(pairs)]
    kind = "compiled" if chosen.compiles(recipe.seen(len(data)) // chosen.workers) else "eager"
    note = f"{kind}, {chosen.workers} at a time, {chosen.threads} thread each / 1, {plan.available_cores()} threads"
    return summarise(f"{EXPERTS} experts, {epochs} epochs, F14", times, target=">= 2.0", note=note)


def _cpu(work: Callable[[], object]) -> float:
    torch.set_num_threads(1)
    began = time.process_time()
    work()
    return time.process_time() - began


def _clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    os.environ["ATTAR_PROGRESS"] = "off"
    keep_freed_memory()  # for both sides alike
    return [segment(10, ">= 1.3"), segment(20, ">= 1.3"), *memory(), experts(SHORT, 3), experts()]


if __name__ == "__main__":
    print(HEADER, *(ratio.line() for ratio in main()), sep="\n")

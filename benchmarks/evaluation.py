"""Evaluating 5 networks for 300 epochs on 100 images against the classic way: one after another, with a `DataLoader`.

Each way runs in a process of its own, as it does for its users, timed behind the imports and the loading of the data:
what it starts, compiles or keeps counts. `classic-kept` is the classic way with Attar's setting of the allocator.

python -m benchmarks.evaluation
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

import torch

from attar.artifacts import DistilledSet
from attar.data import load
from attar.run import plan
from attar.run.memory import keep_freed_memory
from attar.train.evaluation import Protocol, evaluate
from attar.train.training import TensorSource, Training
from benchmarks import classic
from benchmarks.measure import HEADER, Ratio, summarise
from benchmarks.workload import IPC, network

PAIRS, NETWORKS, EPOCHS = 5, 5, 300


def seconds(way: str, augment: str, epochs: int) -> float:
    """Evaluate once in one way, in this process, and return the wall-clock seconds."""
    splits = load("fashion-mnist-mini?size=14")
    distilled = DistilledSet.from_real(splits.train, IPC, torch.Generator().manual_seed(0))
    spec = network(14)
    if way == "classic-kept":
        keep_freed_memory()
    began = time.perf_counter()
    if way == "attar":
        source = TensorSource(distilled.images, distilled.labels)
        protocol = Protocol(net=spec, networks=NETWORKS, training=Training(epochs=epochs, augment=augment))
        chosen = plan.choose(14, {"device": "cpu"})
        evaluate({"distilled": lambda index: source}, splits.test, protocol, seed=0, plan=chosen)
    else:
        torch.set_num_threads(plan.available_cores())  # torch's default
        build = partial(classic.convnet, splits.train, spec.width, spec.depth)
        images, labels = distilled.images, distilled.labels
        classic.evaluate(images, labels, splits.test, build, networks=NETWORKS, epochs=epochs, augment=augment)
    return time.perf_counter() - began


def _apart(way: str, augment: str, epochs: int) -> float:
    command = [sys.executable, "-m", "benchmarks.evaluation", way, augment, str(epochs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(augment: str, *, other: str = "classic", epochs: int = EPOCHS, pairs: int = PAIRS) -> Ratio:
    """Return the ratio of wall-clock times, both ways in turn."""
    times = []
    for index in range(pairs):
        ways = ("attar", other) if index % 2 == 0 else (other, "attar")
        taken = {way: _apart(way, augment, epochs) for way in ways}
        times.append((taken["attar"], taken[other]))
    chosen = plan.choose(14, {"device": "cpu"})
    note = f"{chosen.workers} at a time, {chosen.threads} thread each / 1, {plan.available_cores()} threads"
    topic = f"evaluate {NETWORKS} x {epochs}, {augment}, F14 / {other}"
    return summarise(topic, times, target=">= 2.0", note=note)


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    return [measure("none"), measure("dsa"), measure("none", other="classic-kept")]


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(seconds(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    else:
        print(HEADER, *(ratio.line() for ratio in main()), sep="\n")

"""Evaluating 5 networks for 300 epochs on 100 images against the classic way: one after another, with a `DataLoader`.

python -m benchmarks.evaluation
"""

from __future__ import annotations

from functools import partial

import torch

from attar.artifacts import DistilledSet
from attar.data import load
from attar.run import plan
from attar.train.evaluation import Protocol, evaluate
from attar.train.training import TensorSource, Training
from benchmarks import classic
from benchmarks.measure import HEADER, Ratio, paired
from benchmarks.workload import IPC, SHAPES, network

PAIRS, NETWORKS, EPOCHS = 3, 5, 300


def measure(augment: str, *, epochs: int = EPOCHS, pairs: int = PAIRS) -> Ratio:
    """Return the ratio of wall-clock times, the start of processes and any compilation included."""
    splits = load("fashion-mnist-mini?size=14")
    distilled = DistilledSet.from_real(splits.train, IPC, torch.Generator().manual_seed(0))
    source = TensorSource(distilled.images, distilled.labels)
    spec, chosen = network(14), plan.choose(14, {"device": "cpu"})
    protocol = Protocol(net=spec, networks=NETWORKS, training=Training(epochs=epochs, augment=augment))
    threads = plan.available_cores()  # torch's default for the rival

    def ours() -> None:
        from joblib.externals.loky import get_reusable_executor

        evaluate({"distilled": lambda index: source}, splits.test, protocol, seed=0, plan=chosen)
        get_reusable_executor().shutdown(wait=True)  # every evaluation starts its processes anew

    def other() -> None:
        torch.set_num_threads(threads)
        build = partial(classic.convnet, splits.train, spec.width, spec.depth)
        images, labels = distilled.images, distilled.labels
        classic.evaluate(images, labels, splits.test, build, networks=NETWORKS, epochs=epochs, augment=augment)

    note = f"{chosen.workers} processes of {chosen.threads} thread / 1 process of {threads} threads; all included"
    topic = f"evaluate {NETWORKS} x {epochs} epochs, augment {augment}"
    return paired(f"{topic}, {SHAPES[14][:3]}", ours, other, pairs=pairs, target=">= 2.0", note=note, warmup=0)


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    return [measure("none"), measure("dsa")]


if __name__ == "__main__":
    print(HEADER, *(ratio.line() for ratio in main()), sep="\n")

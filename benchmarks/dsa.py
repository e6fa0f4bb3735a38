"""An update of DSA's images against the classic formulation: per-class `autograd.grad`, network built anew.

python -m benchmarks.dsa
"""

from __future__ import annotations

from attar.methods.data.dsa import SiameseAugmentation
from attar.run import plan
from benchmarks import classic
from benchmarks.measure import HEADER, Ratio, summarise
from benchmarks.workload import IPC, REAL, SHAPES, against, images, network

STEPS = {14: 40, 28: 15}
TARGETS = {14: ">= 1.2", 28: ">= 1.0"}


def measure(size: int) -> Ratio:
    """Return the ratio for images of a size; networks are not trained in between, on either side."""
    data, spec = images(size), network(size)
    rival = classic.MatchGradients(data, ipc=IPC, real=REAL, width=32, depth=spec.depth, augment="dsa", lr=0.1)
    method = SiameseAugmentation(ipc=IPC, real_batch=REAL, net=spec, steps=STEPS[size], updates=1, epochs=0)
    chosen = plan.choose(size, {"device": "cpu", "threads": 1})
    note = f"1 thread each, chunk {chosen.chunk}, eager, one network an update"
    return summarise(
        f"DSA update, {SHAPES[size]}", against(method, data, chosen, rival.step), target=TARGETS[size], note=note
    )


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    return [measure(size) for size in SHAPES]


if __name__ == "__main__":
    print(HEADER, *(ratio.line() for ratio in main()), sep="\n")

"""An iteration of DM against the classic formulation: one forward a class, a network built anew in every step.

python -m benchmarks.dm
"""

from __future__ import annotations

from attar.methods.data.dm import DistributionMatching
from attar.run import plan
from benchmarks import classic
from benchmarks.measure import HEADER, Ratio, summarise
from benchmarks.workload import IPC, REAL, SHAPES, against, images, network

STEPS = {14: 60, 28: 25}
TARGETS = {14: ">= 1.5", 28: ">= 1.0"}


def measure(size: int, *, compiled: bool, augment: str = "none") -> Ratio:
    """Return the ratio for images of a size, with the plan of a long run (compiled) or of a short one."""
    data, spec = images(size), network(size)
    rival = classic.MatchMeans(data, ipc=IPC, real=REAL, width=32, depth=spec.depth, augment=augment, lr=1.0)
    method = DistributionMatching(ipc=IPC, real_batch=REAL, net=spec, augment=augment, steps=STEPS[size])
    chosen = plan.choose(size, {"device": "cpu", "threads": 1, "compile": compiled, "compile_after": 0})
    kind = "compiled" if compiled else "eager"
    note = f"1 thread each, chunk {chosen.chunk}, {kind}, augment {augment}; compilation not counted"
    return summarise(
        f"DM iteration, {SHAPES[size]}, {kind}",
        against(method, data, chosen, rival.step),
        target=TARGETS[size],
        note=note,
    )


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    kinds = (True, False) if plan.has_compiler() else (False,)
    return [measure(size, compiled=compiled) for size in SHAPES for compiled in kinds]


if __name__ == "__main__":
    print(HEADER, *(ratio.line() for ratio in main()), sep="\n")

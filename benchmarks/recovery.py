"""A step of SRe2L's recovery against a hand-written loop: one image of every class, batch norms read by hooks.

python -m benchmarks.recovery
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch

from attar import nets
from attar.artifacts import Student
from attar.methods.data.sre2l import SqueezeRecover
from attar.run import Adam, plan
from benchmarks import classic
from benchmarks.measure import HEADER, Ratio, summarise
from benchmarks.workload import SHAPES, against, images, network

STEPS = {14: 400, 28: 100}
JITTER, LR, ALPHA = 4, 0.1, 0.05


def measure(size: int) -> Ratio:
    """Return the ratio for images of a size; both teachers are ConvNets that have seen a batch of real images."""
    data = images(size)
    spec = dataclasses.replace(network(size), norm="batch")
    module = nets.fresh(spec, data, torch.Generator().manual_seed(0)).train()
    other = classic.convnet(data, spec.width, spec.depth, batch_norm=True).train()
    real = data.normalised(torch.arange(256))
    module(real), other(real)
    teacher = Student(module, spec, data.channels, data.size, data.classes)
    rival = classic.Recover(other, data, steps=STEPS[size], lr=LR, alpha=ALPHA, jitter=JITTER)
    optimizer = Adam(lr=LR, beta1=0.5, beta2=0.9)
    method = SqueezeRecover(
        ipc=1, steps=STEPS[size], optimizer=optimizer, alpha=ALPHA, jitter=JITTER, crops=None, net=spec
    )
    chosen = plan.choose(size, {"device": "cpu", "threads": 1})
    times = against(partial(method, teacher=teacher), data, chosen, rival.step)
    note = f"1 thread each, eager, {data.num_classes} images, by hand / attar"
    return summarise(f"SRe2L recovery step, {SHAPES[size]}", times, target=">= 1.0", note=note)


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    return [measure(size) for size in SHAPES]


if __name__ == "__main__":
    print(HEADER, *(ratio.line() for ratio in main()), sep="\n")

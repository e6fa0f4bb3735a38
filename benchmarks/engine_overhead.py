"""What the engine costs: DM through a run against the same loop written by hand.

python -m benchmarks.engine_overhead
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from attar import losses, nets
from attar.artifacts import DistilledSet
from attar.data import Images
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.views import SiameseViews
from attar.run import Plan, plan
from benchmarks.measure import HEADER, Ratio, summarise
from benchmarks.workload import IPC, REAL, SHAPES, against, images, network

STEPS = 1000


def by_hand(data: Images, chosen: Plan) -> Callable[[], object]:
    """Return a step of DM with the same chunks and operations, and without a run."""
    rng = torch.Generator().manual_seed(0)
    synthetic = DistilledSet.from_real(data, IPC, rng)
    pixels = synthetic.images.requires_grad_()
    optimizer = torch.optim.SGD([pixels], 1.0, momentum=0.5)
    module = nets.freeze(nets.fresh(network(data.size), data, rng))
    many, few = (max(1, chosen.chunk // count) for count in (REAL, IPC))

    def parts(count: int) -> list[slice]:
        return [slice(k, k + count) for k in range(0, data.num_classes, count)]

    def step() -> None:
        nets.reset(module, rng)
        indices = data.draw(REAL, rng)
        views = SiameseViews("none", data.num_classes, pixels.shape[1:], rng)
        with torch.no_grad():
            means = torch.cat(
                [
                    module.embed(views(data.normalised(indices[k]), k)).unflatten(0, (-1, REAL)).mean(1)
                    for k in parts(many)
                ]
            )
        by_class = pixels.view(data.num_classes, IPC, *pixels.shape[1:])
        for k in parts(few):
            fake = module.embed(views(by_class[k], k)).unflatten(0, (-1, IPC)).mean(1)
            torch.autograd.backward(losses.squared_mean_distance(means[k], fake), inputs=[pixels])
        optimizer.step()
        pixels.grad = None

    return step


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    data = images(14)
    chosen = plan.choose(14, {"device": "cpu", "threads": 1, "compile": False})
    method = DistributionMatching(ipc=IPC, real_batch=REAL, net=network(14), augment="none", steps=STEPS)
    times = against(method, data, chosen, by_hand(data, chosen))
    note = f"1 thread each, chunk {chosen.chunk}, eager; attar / by hand"
    topic = f"engine overhead, DM, {SHAPES[14]}"
    return [summarise(topic, times, target="<= 1.02", note=note, inverse=True)]


if __name__ == "__main__":
    print(HEADER, *(ratio.line() for ratio in main()), sep="\n")

"""Toy methods: a millisecond a step, and every kind of state that a run keeps."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from attar.artifacts import Selection
from attar.run import SGD, Adam, Cosine, Decay, Optimizer, Run
from attar.spec import method


def selection(values, name="toy"):
    """Any numbers as an artifact."""
    return Selection(torch.arange(3), "toy", name, weights=torch.as_tensor(values, dtype=torch.float64))


@method
class Toy:
    """Two loops over a network with batch norm and dropout, pixels that reset, a count, and an average."""

    version: ClassVar = 1
    presets: ClassVar = {"small": {}}

    steps: int = Field(6, ge=0)
    optimizer: Optimizer = Adam(lr=0.05)

    def __call__(self, run: Run, *, data: object = None) -> Selection:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        schedule = Cosine(warmup=2)
        net = run.learner(
            "net", module, self.optimizer, schedule=schedule, steps=self.steps, ema={"slow": Decay(decay=0.9)}
        )
        pixels = run.learner("pixels", torch.zeros(3, 4), SGD(lr=0.5, momentum=0.9))
        total = run.keep("total", torch.zeros(2))
        seen = run.keep("seen", [])
        for step in run.loop("first", self.steps):
            x = torch.randn(8, 4, generator=run.rng("x", step))
            net.update((module(x) - 1).square().mean())
            pixels.update(
                {"near": (pixels.target - x[:3]).square().mean(), "small": 0.1 * pixels.target.square().sum()}
            )
            total += torch.rand(2)  # the global generator
            seen.value.append(step)
            if step % 3 == 2:
                pixels.reset()
        run.log({"between": len(seen.value)})
        head = nn.Linear(4, 2)  # built by the global generator, also where the first loop was skipped
        second = run.learner("head", head, SGD(lr=0.1, momentum=0.9, nesterov=True))
        for step in run.loop("second", self.steps):
            second.update(
                head(pixels.target.detach() + torch.randn(3, 4, generator=run.rng("x", step))).square().mean()
            )
            run.log(step_norm=float(head.weight.detach().norm()))
        numbers = [*module.state_dict().values(), *net.ema["slow"].state_dict().values(), pixels.target, total]
        numbers += [*head.parameters(), torch.tensor(seen.value), torch.tensor([net.steps, pixels.steps])]
        return selection(torch.cat([n.detach().double().flatten() for n in numbers]))

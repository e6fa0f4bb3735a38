"""The pool: networks of all ages, each trained on the synthetic set by a step a visit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from attar import nets
from attar.nets import Net
from attar.nets.initialise import ImageShape
from attar.run import Adam, Optimizer, Run
from attar.spec import spec
from attar.train.regression import regression_loss


@spec
class Pool:
    """How networks are kept. Defaults are FRePo's (arXiv 2206.00719)."""

    size: int = Field(10, ge=1)  # networks
    max_age: int = Field(100, ge=1)  # steps a network is trained before it is drawn anew
    optimizer: Optimizer = Adam(lr=3e-4)  # of the networks
    batch: int | None = Field(1000, ge=1)  # synthetic images a step, at most; none: all of them


class ModelPool:
    """Networks that learn the synthetic set while it changes, so that it is matched on all stages of a training.

    Args:
        run: whose learners they become.
        pool: size, oldest age and training.
        net: their architecture.
        shape: of their inputs and outputs.
        exceed: whether a network is drawn anew where its age exceeds the oldest, as FRePo's official code has it, and
            not where it has reached it, as KRR-ST's has it.
    """

    def __init__(self, run: Run, pool: Pool, net: Net, shape: ImageShape, *, exceed: bool = False) -> None:
        self.run, self.pool, self.oldest = run, pool, pool.max_age + exceed
        self.networks = [
            nets.fresh(net, shape, run.rng("pool network", k), device=run.device).eval() for k in range(pool.size)
        ]
        self.learners = [
            run.learner(f"pool network {k}", network, pool.optimizer) for k, network in enumerate(self.networks)
        ]

    @property
    def ages(self) -> list[int]:
        """Steps that each network has been trained since it was drawn."""
        return [learner.steps for learner in self.learners]

    def age(self, ages: Sequence[int], images: Tensor, targets: Tensor) -> None:
        """Train each network for its number of steps on the set, in a loop of the run."""
        visits = [k for k, steps in enumerate(ages) for _ in range(steps)]
        for step in self.run.loop("age the pool", len(visits)):
            self.learn(visits[step], images, targets)

    def pick(self, rng: torch.Generator) -> int:
        """Return the number of a network, each with the same chance."""
        return int(torch.randint(self.pool.size, (), generator=rng))

    def visit(self, number: int, images: Tensor, targets: Tensor) -> None:
        """Train a network by a step on the set or, where it is too old, draw it anew at age 0.

        In the official code of KRR-ST the age of a network that was drawn anew stays, so that from then on every visit
        draws it anew; here it starts over.
        """
        if self.learners[number].steps < self.oldest:
            self.learn(number, images, targets)
        else:
            rng = self.run.rng("renew", self.run.step)
            self.learners[number].reset(lambda module: nets.reset(self.networks[number], rng))

    def learn(self, number: int, images: Tensor, targets: Tensor) -> None:
        """Train a network by a step of squared error on images `[n, C, S, S]` and targets `[n, d]`."""
        network, learner = self.networks[number], self.learners[number]
        if self.pool.batch is not None and len(images) > self.pool.batch:
            chosen = torch.randperm(len(images), generator=self.run.rng("pool batch", self.run.step))[: self.pool.batch]
            images, targets = images[chosen.to(images.device)], targets[chosen.to(images.device)]
        network.train()
        loss = regression_loss(network, images, targets)
        learner.add_grads(torch.autograd.grad(loss, learner.parameters))
        learner.step()
        network.eval()
        self.run.log({"pool loss": loss.detach()})

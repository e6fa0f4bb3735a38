"""The loop that turns a teacher into images: every method of the family is this loop with other fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.data import Images
from attar.methods.data.recovery.crops import Crops
from attar.methods.data.recovery.teacher import BatchNorms, ascend, rolled
from attar.run import Adam, Cosine, Learner, Optimizer, Run
from attar.run.processes import AsManyProcesses
from attar.spec import spec
from attar.train.training import logits_of


@spec
class Adjustment:
    """Directed weight adjustment: before every batch the teacher climbs away from its start (arXiv 2409.17612)."""

    steps: int = Field(12, ge=1)  # K; 15 on ImageNet
    radius: float = Field(0.015, ge=0)  # ρ, the most the parameters move, over all of them together
    relative: bool = False  # ρ as a share of the parameters' length, so that it carries over to other networks


@spec
class Recovery:
    """How a batch of images is recovered. Defaults are SRe2L's for ImageNet-1K (arXiv 2306.13092)."""

    steps: int = Field(4000, ge=1)  # of every batch; the paper also gives 2000 as a fast form
    optimizer: Optimizer = Adam(lr=0.25, beta1=0.5, beta2=0.9)  # of the pixels, along a cosine to zero
    alpha: float = Field(0.01, ge=0)  # weight of the batch norms' statistics; 1 for Tiny-ImageNet
    first_weight: float = Field(10.0, ge=0)  # of the first batch norm against the others
    variance_weight: float = Field(1.0, ge=0)  # of variances against means; DWA: 11, on ImageNet 2
    crops: Crops | None = Crops()  # none: whole pictures, as the paper has it on CIFAR
    jitter: int = Field(32, ge=0)  # pixels, the largest roll; 4 for images of 32 and 64 px
    both_ways: bool = False  # rolls go up and to the left, too: the official code's on Tiny-ImageNet, and there alone
    adjustment: Adjustment | None = None  # of the teacher before every batch (DWA)


@dataclass(frozen=True)
class Batch:
    """One batch to recover.

    Attributes:
        start: first value of what is optimised, at most as many rows as the variable has.
        show: from the variable's rows to images `[n, C, H, W]` in the space networks see; differentiable.
        labels: `[n]` int64.
        network: which of the teachers looks at them.
        clamp: whether the variable itself are pixels, held in the range of valid images.
    """

    start: Tensor
    show: Callable[[Tensor], Tensor]
    labels: Tensor
    network: int = 0
    clamp: bool = True


class Recoverer:
    """Runs the loop over batches with one learner, as many side by side as there are processes, one in each.

    Batches do not depend on one another, so a process computes the gradient of its own; the rows of all of them, of
    which every process has a copy, are one variable, and a step sums gradients as everywhere.

    Args:
        run: the run; its loop is called "recover".
        recovery: the fields.
        networks: teachers, frozen and in evaluation mode.
        variable: what is optimised in a batch; batch by batch it starts anew.
        data: whose pixel range holds.
    """

    def __init__(
        self, run: Run, recovery: Recovery, networks: Sequence[nn.Module], variable: Tensor, data: Images
    ) -> None:
        self.run, self.recovery, self.networks, self.data = run, recovery, list(networks), data
        self.norms = [BatchNorms(network) for network in networks]
        self.room = len(variable)
        self.variable = variable if run.world == 1 else torch.cat([variable] * run.world)
        run.keep("processes", AsManyProcesses(run))
        self.learner: Learner = run.learner(
            "pixels", self.variable, recovery.optimizer, schedule=Cosine(), steps=recovery.steps
        )
        self.first = [{name: value.clone() for name, value in n.state_dict().items()} for n in networks]

    def recover(self, batches: Callable[[int], Batch], count: int, released: Callable[[int, Tensor], None]) -> None:
        """Recover `count` batches and hand over each one's variable, its last iterate, when it is done."""
        steps, world = self.recovery.steps, self.run.world
        side: dict[int, Batch] = {}  # number -> batch, of those that are recovered now
        mine: Sequence[int] = ()
        for step in self.run.loop("recover", -(-count // world) * steps):
            begin, inner = step // steps * world, step % steps
            if not side or inner == 0:
                side = {number: batches(number) for number in range(begin, min(begin + world, count))}
                mine = range(begin, begin + len(side))[self.run.shard(len(side))]
                for number in mine:
                    self.adjust(side[number], number)
            if inner == 0:
                self.begin(side)
            for number in mine:
                batch = side[number]
                self.run.backward(self.terms(batch, batch.show(self.rows(batch, number)), number, inner), self.learner)
            self.learner.step()
            with torch.no_grad():
                for number, batch in side.items():
                    rows = self.rows(batch, number)
                    if batch.clamp:
                        rows.copy_(valid(self.data, rows))
                    if inner == steps - 1:
                        released(number, rows.detach())

    def rows(self, batch: Batch, number: int) -> Tensor:
        """Return the part of the variable that belongs to a batch."""
        start = number % self.run.world * self.room
        return self.variable[start : start + len(batch.start)]

    def begin(self, side: Mapping[int, Batch]) -> None:
        """Set the variable to where these batches start, and forget the optimizer's state."""

        @torch.no_grad()
        def start(variable: object) -> None:
            self.variable.zero_()
            for number, batch in side.items():
                self.rows(batch, number).copy_(batch.start)

        self.learner.reset(start)

    def adjust(self, batch: Batch, number: int) -> None:
        """Adjust the teacher of a batch where that is asked; the same batch makes the same teacher."""
        adjustment = self.recovery.adjustment
        if adjustment is None:
            return
        network = self.networks[batch.network]
        network.load_state_dict(self.first[batch.network])  # from the trained weights: batches must not pile up
        radius = adjustment.radius
        if adjustment.relative:
            radius *= float(torch.nn.utils.get_total_norm(list(network.parameters())))
        images = self.shown(batch.show(batch.start).detach(), number, 0)  # as the first step will see them
        ascend(network, images, batch.labels, steps=adjustment.steps, radius=radius)

    def shown(self, images: Tensor, number: int, inner: int) -> Tensor:
        """Return images `[n, C, H, W]` of a batch in the view of one of its steps, which all of them share."""
        recovery = self.recovery
        step = number * recovery.steps + inner  # as if batches came one by one, whatever the number of processes
        if recovery.crops is not None:
            images = recovery.crops(images, inner, recovery.steps, self.run.key("crop", step))
        return rolled(images, recovery.jitter, self.run.rng("roll", step), both_ways=recovery.both_ways)

    def terms(self, batch: Batch, images: Tensor, number: int, inner: int) -> dict[str, Tensor]:
        """Return the two terms of the loss of images `[n, C, H, W]`: their class, and the batch norms' statistics."""
        recovery = self.recovery
        logits = logits_of(self.networks[batch.network], self.shown(images, number, inner))
        distance = self.norms[batch.network].distance(
            first_weight=recovery.first_weight, variance_weight=recovery.variance_weight
        )
        return {
            "classification": losses.cross_entropy(logits, batch.labels),
            "statistics": recovery.alpha * distance,
        }


def valid(data: Images, images: Tensor) -> Tensor:
    """Return images `[n, C, H, W]` of the space networks see with their pixels clamped to those of real pictures."""
    if data.whitening is not None:
        return data.normalise(data.denormalise(images).clamp(0, 1))
    mean, std = (value.to(images.device)[:, None, None] for value in (data.mean, data.std))
    return images.clamp(-mean / std, (1 - mean) / std)

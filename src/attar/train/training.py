"""The one trainer of students: methods, evaluation, baselines and claims all train through `batch_loss`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.data import augmentation
from attar.data.plans import order_of
from attar.losses import Reduction
from attar.run.optimizers import SGD, Drop, Optimizer, Schedule
from attar.run.processes import Processes
from attar.spec import spec
from attar.train.synchronised import synchronised

Stream = Callable[..., torch.Generator]  # (name, *counters) -> generator, as `Run.rng`
LossOf = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (network, images, labels) -> loss


@spec
class Training:
    """How a student is trained. Defaults are the field's protocol for distilled sets (arXiv 2006.05929)."""

    steps: int | None = Field(None, ge=1)  # optimizer steps; none: `epochs` + 1 passes over the set
    epochs: int = Field(300, ge=0)  # the field's E: E + 1 passes are made
    batch: int = Field(256, ge=1)  # images a step, at most the whole set
    optimizer: Optimizer = SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)
    schedule: Schedule | None = None  # none: the field's, ×0.1 once, behind epoch E // 2 + 1
    augment: str = "none"  # of each batch: none, dsa, …

    def total(self, count: int) -> int:
        """Return the number of optimizer steps for a set of `count` images."""
        return self.steps or (self.epochs + 1) * -(-count // self.batch)

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied by at `step` of `steps`."""
        schedule = self.schedule or Drop(at=((self.epochs // 2 + 2) / (self.epochs + 1),), by=0.1)
        return schedule.factor(step, steps)


class Labelled(Protocol):
    """What a student is trained on: `Images` and `TensorSource`."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs in the space networks see, and labels (hard `[n]` or soft `[n, classes]`)."""


class TensorSource:
    """Images and labels that are already in the space networks see."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.detach(), labels.detach()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels at `indices`; the whole set, in order, comes without a copy."""
        if len(indices) == len(self):
            return self.images, self.labels
        return self.images[indices], self.labels[indices]


class Order:
    """Which samples a step reads, and how they are augmented: a pure function of the step."""

    def __init__(self, source: Labelled, training: Training, rng: Stream, name: str = "order") -> None:
        self.source, self.rng = source, rng
        self.augment = augmentation(training.augment)
        self.plan = order_of(source, min(training.batch, len(source)), int(rng(name).initial_seed()))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the augmented inputs and the labels of a step."""
        images, labels = self.source.batch(self.plan.indices(step))
        view = self.augment.draw(len(images), images.shape[1:], self.rng("augment", step))
        return view(images), labels


def batch_loss(module: nn.Module, images: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return the cross-entropy of a batch with hard labels `[n]` or probabilities `[n, classes]`."""
    loss = losses.cross_entropy if labels.dim() == 1 else losses.soft_cross_entropy
    return loss(module(images), labels, reduction=reduction)


def shared_loss(run: Processes, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return this process's share of `batch_loss` over the global batch; the shares add up to it.

    Each process takes its rows, and batch norms see those of all. A batch of fewer rows than processes goes through in
    every process.
    """
    rows = run.shard(len(images))
    if len(images) < run.world or run.world == 1:
        return batch_loss(module, images, labels) / run.world
    with synchronised(module, run):
        return batch_loss(module, images[rows], labels[rows], reduction="sum") / len(images)


def fit(module: nn.Module, source: Labelled, training: Training, rng: Stream, loss_of: LossOf = batch_loss) -> int:
    """Train a module in place, with no checkpoints (for students that take seconds); return the steps taken.

    `loss_of` is `batch_loss` or a compiled form of it.
    """
    return sum(1 for _ in fitting(module, source, training, rng, loss_of))


def fitting(
    module: nn.Module, source: Labelled, training: Training, rng: Stream, loss_of: LossOf = batch_loss
) -> Iterator[int]:
    """Train as `fit` does, one step each time the next is asked for."""
    module.train()
    order = Order(source, training, rng)
    steps = training.total(len(source))
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = training.optimizer.build(parameters)
    for step in range(steps):
        images, labels = order.batch(step)
        for group in optimizer.param_groups:
            group["lr"] = training.optimizer.lr * training.factor(step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss_of(module, images, labels).backward()
        optimizer.step()
        yield step


def logits_in(output: Any) -> Tensor:
    """Return the logits `[n, classes]` in what a classifier gives: all of it, or its `.logits`, as in transformers."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def logits_of(module: nn.Module, images: Tensor) -> Tensor:
    """Return a classifier's logits `[n, classes]` of images `[n, C, H, W]`."""
    return logits_in(module(images))


@torch.no_grad()
def predict(module: nn.Module, source: Labelled, chunk: int = 256) -> Tensor:
    """Return logits `[N, classes]` of all samples, in evaluation mode, `chunk` at a time."""
    module.eval()
    parts = torch.arange(len(source)).split(chunk)
    return torch.cat([logits_of(module, source.batch(part)[0]) for part in parts])

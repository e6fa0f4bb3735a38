"""Recording experts: networks in training on the real data, whose parameters are kept behind every epoch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from attar import files, losses
from attar.artifacts import load
from attar.artifacts.trajectories import Trajectories
from attar.data import Images, augmentation
from attar.errors import AttarError
from attar.losses.trajectory import adaptive_climb, input_gradient_penalty, sharpness_aware_direction
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.nets import ConvNet, Net
from attar.nets.initialise import Shape
from attar.run import SGD, Constant, Plan, Run, Schedule, keys
from attar.run.fan_out import Shared
from attar.spec import method, spec

GROUP = 10  # experts that advance together: what a checkpoint holds, whatever the number of processes


@spec
class Flat:
    """Adaptive GSAM: experts keep to flat regions, for two gradients a step (Du et al. 2023, arXiv 2211.11004)."""

    rho: float = Field(0.01, gt=0)  # radius of the climb, relative to the weights
    alpha: float = Field(0.3, ge=0)  # share of the orthogonal part; the paper: 0.3 or 1


@spec
class ExpertRecipe:
    """How experts are trained. Defaults are MTT's: plain SGD, whose steps a student can follow (arXiv 2203.11932)."""

    count: int = Field(100, ge=1)  # experts
    epochs: int = Field(50, ge=1)
    images: int | None = Field(None, ge=1)  # real images an expert sees, alike of every class; none: all
    batch: int = Field(256, ge=1)
    optimizer: SGD = SGD(lr=0.01)  # momentum and weight decay make stronger experts that are harder to match
    schedule: Schedule = Constant()  # of the learning rate, by epoch
    augment: str = "dsa"  # image by image
    flat: Flat | None = None  # FTD's optimizer
    ramp: int = Field(0, ge=0)  # epochs in which the loss counts 0.5 rising to 1 (AST's clipping loss; its paper: 10)
    penalty: float = Field(0.0, ge=0)  # weight of AST's gradient penalty (its code: 2); three times the cost

    def seen(self, images: int) -> int:
        """Return how many images go through all experts' networks where an epoch has so many."""
        return self.count * self.epochs * images * (1 if self.flat is None else 2)

    def loss_scale(self, epoch: int) -> float:
        """Return what multiplies the cross-entropy: 0.5 + 0.5 · epoch / ramp, then 1."""
        return 0.5 + 0.5 * epoch / self.ramp if epoch < self.ramp else 1.0


@method
class RecordExperts:
    """Train `recipe.count` networks on the real data and keep their parameters at the start and behind every epoch.

    One step of the loop is one epoch of up to ten experts, side by side in the launcher's processes and the plan's
    workers. Every epoch is a file of its own until all are there, so a killed run repeats at most one epoch.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {
            "net": {"depth": 2, "width": 32},
            "recipe": {"count": 3, "epochs": 12, "images": 6000, "optimizer": {"lr": 0.02}, "augment": "none"},
        },
    }

    net: Net = ConvNet(depth=3, width=128)
    recipe: ExpertRecipe = ExpertRecipe()

    def __call__(self, run: Run, *, data: Images) -> Trajectories:
        recipe, network = self.recipe, FlatNetwork(self.net, data)
        part = _part(data, recipe.images, run.rng("images"))
        together = min(recipe.count, GROUP)
        weights = run.keep("weights", torch.zeros(together, network.count))
        momentum = run.keep("momentum", torch.zeros(together, network.count))
        job = _Job(
            self.net, recipe, Shared(part), compile=run.plan.compiles(recipe.seen(len(part)) // run.plan.workers)
        )
        shards = run.folder / "shards"
        for step in run.loop("record", math.ceil(recipe.count / GROUP) * recipe.epochs):
            group, epoch = divmod(step, recipe.epochs)
            members = range(group * GROUP, min((group + 1) * GROUP, recipe.count))
            if epoch == 0:
                momentum.zero_()
                for row, expert in enumerate(members):
                    weights[row] = network.fresh(run.rng("start", expert))
                run.first(functools.partial(_save, shards, group, 0, weights[: len(members)]))
            items = [
                job.at(weights[row].clone(), momentum[row].clone(), epoch, run.key("expert", expert, epoch))
                for row, expert in enumerate(members)
            ]
            for row, (point, buffer, loss) in enumerate(run.map(f"epoch {epoch}", train_epoch, items)):
                weights[row], momentum[row] = point, buffer
                run.log({f"expert {members[row]}/loss": loss})
            run.first(functools.partial(_save, shards, group, epoch + 1, weights[: len(members)]))
        return Trajectories(_collect(shards, recipe), self.net, data)


@dataclass(frozen=True)
class _Job:
    """One epoch of one expert, as it is sent to a process."""

    net: Net
    recipe: ExpertRecipe
    data: Shared[Images]
    weights: Tensor | None = None
    momentum: Tensor | None = None
    epoch: int = 0
    key: int = 0
    compile: bool = False

    def at(self, weights: Tensor, momentum: Tensor, epoch: int, key: int) -> _Job:
        return dataclasses.replace(self, weights=weights, momentum=momentum, epoch=epoch, key=key)


def recorded(run: Run, net: Net, recipe: ExpertRecipe, data: Images, given: Trajectories | str | None) -> Trajectories:
    """Return the experts that were given (an artifact or its folder), or record them as a stage.

    Raises:
        AttarError: those given are of another network or were trained on other data.
    """
    if given is None:
        made: Trajectories = run.stage("experts", RecordExperts(net=net, recipe=recipe), data=data)
        return made
    experts = given if isinstance(given, Trajectories) else load(given)
    if not isinstance(experts, Trajectories):
        raise AttarError(f"input 'trajectories' takes recorded experts; got a {getattr(experts, 'kind', 'file')}")
    experts.check(net, data)
    return experts


def train_epoch(job: _Job) -> tuple[Tensor, Tensor, float]:
    """Train one expert for an epoch; return its parameters, its momentum and the mean loss, on the CPU."""
    data, recipe = job.data.value, job.recipe
    device = data.pixels.device
    if job.compile and not recipe.penalty:  # compiled code is differentiable once
        network = _compiled(job.net, Shape(data.channels, data.size, data.num_classes), device)
    else:
        network = FlatNetwork(job.net, data, device)
    weights, momentum = cast(Tensor, job.weights).to(device), cast(Tensor, job.momentum).to(device)
    order = torch.randperm(len(data), generator=keys.generator(job.key, (), "order", ()))
    augment = augmentation(recipe.augment)
    rate = recipe.optimizer.lr * recipe.schedule.factor(job.epoch, recipe.epochs)
    total, batches = 0.0, order.split(min(recipe.batch, len(data)))
    for step, indices in enumerate(batches):
        images, labels = data.batch(indices)
        view = augment.draw(len(images), images.shape[1:], keys.generator(job.key, (), "augment", (step,)))
        loss_of = ExpertLoss(network, images, view(images), labels, recipe.loss_scale(job.epoch), recipe.penalty)
        loss, direction = expert_direction(loss_of, weights, recipe.flat)
        total += float(loss)
        weights, momentum = sgd_step(recipe.optimizer, weights, momentum, direction, rate)
    return weights.cpu(), momentum.cpu(), total / len(batches)


@functools.lru_cache(maxsize=1)
def _compiled(net: Net, like: Shape, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the compiled network of all jobs of this process, a function of parameters and images."""
    return Plan(compile=True, compile_after=0).compiled(FlatNetwork(net, like, device), 0)


@dataclass(frozen=True)
class ExpertLoss:
    """The loss of an expert on one batch, as a function of its flat parameters."""

    network: Callable[[Tensor, Tensor], Tensor]
    images: Tensor  # as they are: AST's penalty is on them
    augmented: Tensor
    labels: Tensor
    scale: float = 1.0
    penalty: float = 0.0

    def __call__(self, parameters: Tensor) -> Tensor:
        """Return scale · cross-entropy + penalty · input-gradient penalty."""
        loss = self.scale * losses.cross_entropy(self.network(parameters, self.augmented), self.labels)
        if self.penalty:
            images = self.images.detach().requires_grad_()
            loss = loss + self.penalty * input_gradient_penalty(self.network(parameters, images), images)
        return loss

    def gradient(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient `[P]` at `parameters` `[P]`."""
        point = parameters.detach().requires_grad_()
        loss = self(point)
        return loss.detach(), torch.autograd.grad(loss, point)[0]


def expert_direction(loss_of: ExpertLoss, weights: Tensor, flat: Flat | None) -> tuple[Tensor, Tensor]:
    """Return the loss and the direction an expert descends along: the gradient, or GSAM's from two gradients."""
    loss, gradient = loss_of.gradient(weights)
    if flat is None:
        return loss, gradient
    _, climbed = loss_of.gradient(weights + adaptive_climb(weights, gradient, flat.rho))
    return loss, sharpness_aware_direction(gradient, climbed, flat.alpha)


def sgd_step(
    optimizer: SGD, weights: Tensor, momentum: Tensor, direction: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """Return parameters and momentum behind one step of `torch.optim.SGD` on a flat vector, from a zero buffer."""
    if optimizer.weight_decay:
        direction = direction + optimizer.weight_decay * weights
    if optimizer.momentum:
        momentum = optimizer.momentum * momentum + direction
        direction = direction + optimizer.momentum * momentum if optimizer.nesterov else momentum
    return weights - rate * direction, momentum


def loss_rise(
    network: FlatNetwork, weights: Tensor, images: Tensor, labels: Tensor, rng: torch.Generator, *, noise: float = 0.05
) -> float:
    """Return how much the cross-entropy rises when every weight moves by `noise` · its size · N(0, 1): sharpness."""
    draw = torch.randn(len(weights), generator=rng).to(weights)
    with torch.no_grad():
        here = losses.cross_entropy(network(weights, images), labels)
        there = losses.cross_entropy(network(weights + noise * weights.abs() * draw, images), labels)
    return float(there - here)


def _part(data: Images, images: int | None, rng: torch.Generator) -> Images:
    """Return as many images of every class as make up `images`, or all of the data."""
    if images is None or images >= len(data):
        return data
    return data.subset(data.choose_per_class(max(1, images // data.num_classes), rng))


def _save(shards: Path, group: int, epoch: int, weights: Tensor) -> None:
    files.save_tensors(_shard(shards, group, epoch), {"weights": weights.clone()})


def _collect(shards: Path, recipe: ExpertRecipe) -> list[Tensor]:
    """Return the experts `[epochs + 1, P]` from the files of their epochs."""
    experts: list[Tensor] = []
    for group in range(math.ceil(recipe.count / GROUP)):
        epochs = [files.load_tensors(_shard(shards, group, epoch))["weights"] for epoch in range(recipe.epochs + 1)]
        experts += torch.stack(epochs, 1).unbind(0)
    return [expert.contiguous() for expert in experts]


def _shard(shards: Path, group: int, epoch: int) -> Path:
    return shards / f"group-{group:03d}-epoch-{epoch:04d}.safetensors"


def accuracy_of(network: FlatNetwork, weights: Tensor, data: Images, chunk: int = 512) -> float:
    """Return the share of `data` that an expert's snapshot `[P]` classifies correctly."""
    right = 0
    with torch.no_grad():
        for part in torch.arange(len(data)).split(chunk):
            images, labels = data.batch(part)
            right += int((network(weights, images).argmax(1) == labels).sum())
    return right / len(data)

"""The teacher of KRR-ST: a network that has seen images and no labels, and what it represents them by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import nets
from attar.artifacts import Student, load
from attar.data import DSA, Images, augmentation
from attar.errors import AttarError, DataError
from attar.losses.redundancy import barlow_twins
from attar.nets import Net, ResNet18
from attar.nets.network import Network
from attar.run import Adam, Cosine, Run
from attar.spec import method
from attar.train.regression import Shape
from attar.train.training import Order, Training, predict


@method
class SelfSupervision:
    """Learn features that two views of an image share and that say different things (arXiv 2103.03230).

    Barlow Twins (Zbontar et al. 2021): the loss is on a projector of the features, which is thrown away. Then every
    feature is shifted and scaled to mean 0 and deviation 1 over the images, so that all count alike as targets.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {
            "net": {"kind": "convnet", "depth": 2, "width": 32},
            "dimensions": 64,
            "projector": 256,
            "training": {"steps": 1000, "batch": 128, "optimizer": {"lr": 0.003}},
        }
    }

    net: Net = ResNet18(norm="batch")
    dimensions: int = Field(512, ge=2)  # features, the outputs of the network
    projector: int = Field(2048, ge=1)  # units of each of its two layers
    off_diagonal: float = Field(0.005, ge=0)  # λ, weight of correlations between features
    views: str = "color_crop_cutout_flip_scale_rotate"  # operations, each drawn for each of the two views
    training: Training = Training(epochs=999, batch=256, optimizer=Adam(lr=1e-3), schedule=Cosine())

    def __call__(self, run: Run, *, data: Images) -> Student:
        shape = Shape(data.channels, data.size, self.dimensions)
        network = nets.fresh(self.net, shape, run.rng("net"), device=run.device)
        head = projector(self.dimensions, self.projector).to(run.device)
        nets.reset(head, run.rng("projector"))
        steps = self.training.total(len(data))
        both = nn.ModuleList([network, head])
        learner = run.learner("features", both, self.training.optimizer, schedule=self.training, steps=steps)
        order = Order(data, self.training, run.rng)
        operations = augmentation(self.views).operations
        both.train()
        for step in run.loop("train", steps):
            images, _ = order.batch(step)
            a, b = (head(network(varied(images, operations, run.rng("view", step, k)))) for k in range(2))
            learner.update(barlow_twins(a, b, off_diagonal=self.off_diagonal))
        standardise(network, data)
        names = tuple(f"feature {number}" for number in range(self.dimensions))
        return Student(network.eval(), self.net, data.channels, data.size, names)


def projector(inputs: int, width: int) -> nn.Module:
    """Return two linear layers with batch norm and ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))


def varied(images: Tensor, operations: tuple[str, ...], rng: torch.Generator) -> Tensor:
    """Return images `[n, C, S, S]` after every operation in turn, with parameters drawn for each image."""
    for name in operations:
        images = DSA(name).draw(len(images), images.shape[1:], rng)(images)
    return images


@torch.no_grad()
def standardise(network: Network, data: Images) -> None:
    """Shift and scale the outputs of a network, in place in its linear head, to mean 0 and deviation 1 over `data`."""
    outputs = predict(network, data)
    mean, deviation = outputs.mean(0), outputs.std(0).clamp_min(1e-6)
    network.head.bias.copy_((network.head.bias - mean) / deviation)
    network.head.weight.div_(deviation[:, None])


def represented(run: Run, data: Images, given: Student | str | None, recipe: SelfSupervision) -> nn.Module:
    """Return a frozen network whose outputs are the targets: the one given (or in a folder), or one trained as a stage.

    Raises:
        AttarError: what was given is no trained network.
        DataError: it reads other images.
    """
    if given is None:
        teacher: Any = run.stage("teacher", recipe, data=data)
    else:
        teacher = load(given) if isinstance(given, str | Path) else given
    if not isinstance(teacher, Student):
        raise AttarError(f"input 'teacher' takes a trained network; got a {getattr(teacher, 'kind', 'file')}")
    if (teacher.channels, teacher.size) != (data.channels, data.size):
        raise DataError(
            f"the teacher reads {teacher.channels}×{teacher.size}×{teacher.size} images, {data.source} has "
            f"{data.channels}×{data.size}×{data.size}; give one trained on images of this shape, or none"
        )
    return teacher.module.to(run.device).eval().requires_grad_(False)

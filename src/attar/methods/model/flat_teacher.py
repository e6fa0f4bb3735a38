"""A teacher for long-tailed data: margins for rare classes, late re-weighting, and a flat minimum."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import nets
from attar.artifacts import Student
from attar.data import Images
from attar.losses.long_tail import effective_number_weights, margin_cross_entropy
from attar.nets import CifarResNet, Net
from attar.run import SGD, Drop, Learner, Run
from attar.spec import method
from attar.train.training import Order, Training

_TRAIN = Training(
    epochs=199,
    batch=128,
    optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=2e-4),
    schedule=Drop(at=(0.8, 0.9), by=0.01),
    augment="crop-and-flip",
)  # 200 passes, LDAM-DRW's


@method
class FlatTeacher:
    """Train with LDAM, deferred re-weighting (Cao et al. 2019, arXiv 1906.07413), and SAM (arXiv 2010.01412).

    Each step takes the gradient at w + ρ g / ‖g‖, g being that at w: two passes a step. The head is linear, so the
    margins hold for logits of the size 1 / scale.
    """

    version: ClassVar = 1
    presets: ClassVar = {"small": {"net": {"kind": "convnet", "depth": 2, "width": 32}, "train": {"steps": 300}}}

    net: Net = CifarResNet(depth=32)
    train: Training = _TRAIN
    margin: float = Field(0.5, ge=0)  # of the rarest class
    scale: float = Field(30.0, gt=0)  # of the logits
    beta: float = Field(0.9999, ge=0, lt=1)  # of the effective numbers
    reweight_from: float = Field(0.8, ge=0, le=1)  # share of the steps without class weights
    radius: float = Field(0.05, ge=0)  # ρ; 0: plain gradients

    def __call__(self, run: Run, *, data: Images) -> Student:
        """Train the network; its logits come out at the size that the loss sees."""
        module = nets.fresh(self.net, data, run.rng("net"), device=run.device)
        steps = self.train.total(len(data))
        learner = run.learner("teacher", module, self.train.optimizer, schedule=self.train, steps=steps)
        order = Order(data, self.train, run.rng)
        counts = torch.bincount(data.labels, minlength=data.num_classes)
        weights = effective_number_weights(counts, self.beta)
        module.train()
        for step in run.loop("train", steps):
            images, labels = order.batch(step)
            late = weights if step >= self.reweight_from * steps else None

            def loss(images: Tensor = images, labels: Tensor = labels, late: Tensor | None = late) -> Tensor:
                cosines = module(images) / self.scale
                return margin_cross_entropy(
                    cosines, labels, counts, largest=self.margin, scale=self.scale, weights=late
                )

            moves = _climbed(loss(), learner, self.radius) if self.radius else []
            run.backward(loss(), learner)
            for parameter, before in moves:
                parameter.data.copy_(before)
            learner.step()
        return Student(module.eval(), self.net, data.channels, data.size, data.classes)


def _climbed(loss: Tensor, learner: Learner, radius: float) -> list[tuple[nn.Parameter, Tensor]]:
    """Move a learner's parameters by ρ g / ‖g‖, in place; return them with their values before."""
    gradients = torch.autograd.grad(loss, learner.parameters)
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    kept = []
    for parameter, gradient in zip(learner.parameters, gradients, strict=True):
        kept.append((parameter, parameter.detach().clone()))
        parameter.data.add_(gradient * (radius / (length + 1e-12)))
    return kept  # type: ignore[return-value]

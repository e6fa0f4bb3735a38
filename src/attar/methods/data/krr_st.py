"""KRR-ST: images and feature targets without labels, on which networks are trained before they meet other data."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attar.artifacts import DistilledSet, Student
from attar.artifacts.targeted import UNLABELLED, TargetedSet
from attar.data import Images
from attar.errors import DataError
from attar.losses.kernels import feature_kernel
from attar.losses.ridge import kernel_ridge
from attar.methods.data.ridge.pool import ModelPool, Pool
from attar.methods.data.ridge.teacher import SelfSupervision, represented
from attar.nets import DoublingConvNet, Net
from attar.run import SGD, AdamW, Linear, Optimizer, Run
from attar.spec import method
from attar.train.regression import Shape
from attar.train.training import Order, Training


@method
class SelfSupervisedTransfer:
    """Learn images and targets whose ridge regression predicts a teacher's features of the data (arXiv 2310.06511).

    Lee et al. 2024. The teacher learns without labels, so none are needed. Every step takes a network of the pool,
    predicts the teacher's features of real images from the synthetic ones in closed form, and moves images and
    targets; then that network takes a step of squared error on the new set. Gradients of a self-supervised loss inside
    the inner loop would be biased; those of the squared error are not. Networks trained on the pairs
    (`attar.train.transfer`) are starts for other data. The paper's distillation of a teacher of other data on views of
    these images, without that data, is left out: it needs no target that was learned here.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {
            "images": 50,
            "steps": 500,
            "optimizer": {"lr": 0.01},  # at 1e-4 so few steps move no pixel by more than 0.025
            "real_batch": 256,
            "augment": "none",  # few small images that must predict shifted and mirrored ones predict plain ones worse
            "net": {"kind": "convnet", "depth": 2, "width": 32, "norm": "batch"},
            "pool": {"size": 5},
            "teaching": SelfSupervision.presets["small"],
        },
        "tiny-imagenet": {"images": 2000, "optimizer": {"lr": 1e-5}, "net": {"depth": 4, "width": 64}},
        "imagenet-64": {"optimizer": {"lr": 1e-5}, "net": {"depth": 4, "width": 64}},
    }

    images: int = Field(1000, ge=1)  # in all; defaults are the paper's for CIFAR-100
    steps: int = Field(160_000, ge=1)  # of the images
    optimizer: Optimizer = AdamW(lr=1e-4, weight_decay=0)  # of pixels and targets, along a line to a thousandth
    clip: float | None = Field(None, gt=0)  # largest length of the gradient of the images, and of that of the targets
    real_batch: int = Field(1024, ge=1)  # real images a step
    augment: str = "crop-and-flip"  # of the real images, before teacher and network see them
    net: Net = DoublingConvNet(depth=3, width=128, norm="batch")
    pool: Pool = Pool(max_age=1000, optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=1e-3), batch=None)
    regularisation: float = Field(1e-6, gt=0)  # λ, times the sum of the kernel's diagonal, through which nothing flows
    teaching: SelfSupervision = SelfSupervision()  # how a teacher is trained, where none is given

    def __call__(self, run: Run, *, data: Images, teacher: Student | str | None = None) -> TargetedSet:
        if self.images > len(data):
            raise DataError(f"{self.images} images start as real ones, and {data.source} has {len(data)}; set images")
        known = represented(run, data, teacher, self.teaching)
        synthetic = unlabelled(data, torch.randperm(len(data), generator=run.rng("init"))[: self.images])
        with torch.no_grad():
            targets = known(synthetic.images)
        support = [
            run.learner(name, each, self.optimizer, schedule=Linear(final=1e-3), steps=self.steps, clip=self.clip)
            for name, each in (("images", synthetic.images), ("targets", targets))
        ]
        pool = ModelPool(run, self.pool, self.net, Shape(data.channels, data.size, targets.shape[1]))
        ages = torch.randint(1, self.pool.max_age + 1, (self.pool.size,), generator=run.rng("ages"))
        pool.age(ages.tolist(), synthetic.images, targets)
        order = Order(data, Training(steps=self.steps, batch=self.real_batch, augment=self.augment), run.rng)
        for step in run.loop("match", self.steps):
            number = pool.pick(run.rng("network", step))
            real, _ = order.batch(step)
            run.backward(self.mismatch(pool.networks[number], known, real, synthetic.images, targets), *support)
            for learner in support:
                learner.step()
            pool.visit(number, synthetic.images, targets)
        return TargetedSet.of(synthetic, targets)

    def mismatch(self, network: nn.Module, teacher: nn.Module, real: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over all entries of the squared error with which the set predicts the teacher's features."""
        embed: Any = network.embed
        with torch.no_grad():
            wanted, seen = teacher(real), embed(real)
        made = embed(images)
        kernel = feature_kernel(made, made, bias=True)
        ridge = self.regularisation * kernel.trace().detach()
        predictions = kernel_ridge(kernel, feature_kernel(seen, made, bias=True), targets, ridge)
        return functional.mse_loss(predictions, wanted.double())


def unlabelled(data: Images, indices: Tensor) -> DistilledSet:
    """Return these real images as a set of one class: nothing of their labels is in it."""
    images = data.normalised(indices).clone()
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    made = DistilledSet(images, labels, data, {"protocol": "transfer"})
    made.classes = UNLABELLED
    return made

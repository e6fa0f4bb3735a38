"""FRePo: ridge regression on the features of a pool of networks stands for training them to the end."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from attar.artifacts import DistilledSet
from attar.artifacts.targeted import TargetedSet
from attar.data import Images
from attar.losses.kernels import feature_kernel
from attar.losses.ridge import centred_one_hot, kernel_ridge, label_margin, squared_error
from attar.methods.data.ridge.lamb import Lamb, SupportOptimizer
from attar.methods.data.ridge.pool import ModelPool, Pool
from attar.nets import DoublingConvNet, Net
from attar.run import Cosine, Run
from attar.spec import method
from attar.train.training import Order, Training


@method
class FeatureRegression:
    """Learn images and labels whose ridge regression on a network's features predicts the data (arXiv 2206.00719).

    Zhou et al. 2022. Every step takes a network of the pool as it is, predicts a batch of real images from the
    synthetic ones in closed form, moves images and labels, and then trains that network by a step on the new set. The
    networks' convolutions keep their biases, which batch norm cancels. Students are trained without norm, on the
    learned labels.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {
            "steps": 600,
            "real_batch": 256,
            "optimizer": {"kind": "adam", "lr": 0.03},
            "net": {"kind": "convnet", "depth": 2, "width": 32, "norm": "batch"},
            "pool": {"size": 5, "max_age": 50, "optimizer": {"lr": 0.003}},
        },
        "cifar": {"mirror": True},  # CIFAR-10; CIFAR-100 with one image a class
        "cifar-100": {"mirror": False},  # with ten and fifty
        "fashion-mnist": {"mirror": False},  # and students that see no flips
    }

    ipc: int = Field(10, ge=1)  # images per class
    steps: int = Field(500_000, ge=1)  # of the images
    optimizer: SupportOptimizer = Lamb(lr=3e-4)  # of pixels and labels, along a cosine to a tenth
    real_batch: int = Field(1024, ge=1)  # real images a step
    net: Net = DoublingConvNet(depth=3, width=128, norm="batch")
    pool: Pool = Pool()
    regularisation: float = Field(1e-6, gt=0)  # λ, times the mean of K_ss's diagonal
    mirror: bool = False  # mirror images count as support too: for natural images, of few classes or one of each

    def __call__(self, run: Run, *, data: Images) -> TargetedSet:
        synthetic = DistilledSet.from_real(data, self.ipc, run.rng("init"), protocol="frepo")
        images, classes = synthetic.images, data.num_classes
        targets = centred_one_hot(synthetic.labels, classes) / (classes / 10) ** 0.5
        support = run.learner(
            "support", [images, targets], self.optimizer, schedule=Cosine(final=0.1), steps=self.steps
        )
        order = Order(data, Training(steps=self.steps, batch=self.real_batch), run.rng)
        pool = ModelPool(run, self.pool, self.net, data, exceed=True)
        pool.age([self.pool.max_age * k // self.pool.size for k in range(self.pool.size)], images, targets)
        for step in run.loop("match", self.steps):
            number = pool.pick(run.rng("network", step))
            embed = pool.networks[number].embed
            real, labels = order.batch(step)
            with torch.no_grad():
                wanted = embed(real)
            shown = torch.cat([images, images.flip(-1)]) if self.mirror else images
            made = embed(shown)
            kernel = feature_kernel(made, made)
            ridge = self.regularisation * kernel.diagonal().mean()
            predictions = kernel_ridge(
                kernel, feature_kernel(wanted, made), targets.repeat(len(shown) // len(images), 1), ridge
            )
            error = squared_error(predictions, centred_one_hot(labels, classes).double())
            support.update({"ridge": error, "margin": label_margin(targets)})
            pool.visit(number, images, targets)
        return TargetedSet.of(synthetic, targets)

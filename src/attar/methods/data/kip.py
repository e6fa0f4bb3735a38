"""KIP: images on which ridge regression with the kernel of an infinitely wide network predicts the real data."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attar.artifacts import DistilledSet
from attar.artifacts.targeted import TargetedSet
from attar.data import Images
from attar.losses.ridge import centred_one_hot, kernel_ridge, solved_labels, squared_error
from attar.methods.data.ridge.kernels import Convolutional, Kernel
from attar.run import Adam, Optimizer, Run
from attar.spec import method
from attar.train.training import Order, Training


@method
class KernelInducingPoints:
    """Make a few images the support of kernel ridge regression (Nguyen et al. 2021, arXiv 2011.00050, 2107.13034).

    Every step predicts a batch of real images from the synthetic ones in closed form and moves these, and where they
    are learned their labels, along ½ ‖y_t − K_ts (K_ss + λI)⁻¹ y_s‖². There is no network to train or to draw; the
    images suit networks the better the wider they are. Labels are centred one-hot vectors.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"steps": 500, "real_batch": 500, "kernel": {"kind": "fully-connected"}}
    }

    ipc: int = Field(10, ge=1)  # images per class
    steps: int = Field(5000, ge=0)  # 0 with solve_labels: the paper's Label Solve; unconfirmed, as is the batch
    optimizer: Optimizer = Adam(lr=0.01)  # of pixels and labels; unconfirmed
    real_batch: int = Field(5000, ge=1)  # real images a step
    kernel: Kernel = Convolutional()
    regularisation: float = Field(1e-6, gt=0)  # λ, times the mean of K_ss's diagonal; unconfirmed
    learn_labels: bool = False  # better for ridge regression, much worse for networks
    solve_labels: bool = False  # at the end, the labels that predict the whole training set best

    def __call__(self, run: Run, *, data: Images) -> TargetedSet:
        synthetic = DistilledSet.from_real(data, self.ipc, run.rng("init"), protocol="frepo")
        images, targets = synthetic.images, centred_one_hot(synthetic.labels, data.num_classes)
        learned = [images, targets] if self.learn_labels else [images]
        support = run.learner("support", learned, self.optimizer)
        order = Order(data, Training(steps=max(1, self.steps), batch=self.real_batch), run.rng)
        for step in run.loop("match", self.steps):
            real, labels = order.batch(step)
            kernel = self.kernel(images, images)
            predictions = kernel_ridge(kernel, self.kernel(real, images), targets, self.ridge(kernel))
            support.update(squared_error(predictions, centred_one_hot(labels, data.num_classes).double()))
        if self.solve_labels:
            targets = self.solved(run, data, images.detach())
        return TargetedSet.of(synthetic, targets)

    def ridge(self, kernel: Tensor) -> Tensor:
        """Return λ times the mean of the kernel's diagonal."""
        return self.regularisation * kernel.diagonal().mean()

    def solved(self, run: Run, data: Images, images: Tensor) -> Tensor:
        """Return the labels `[n, classes]` with which the images predict the whole training set best."""
        parts = torch.arange(len(data)).split(self.real_batch)
        cross = run.keep("cross", torch.zeros(len(data), len(images), dtype=torch.float64, device=images.device))
        with torch.no_grad():
            for step in run.loop("label", len(parts)):
                cross[parts[step]] = self.kernel(data.normalised(parts[step]), images)
            kernel = self.kernel(images, images)
        wanted = centred_one_hot(data.labels, data.num_classes)
        return solved_labels(kernel, cross, wanted, self.ridge(kernel)).float()

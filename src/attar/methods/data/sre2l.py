"""SRe2L: squeeze the data into a teacher, recover images from it, let it label them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.artifacts import DistilledSet, Student
from attar.data import Images
from attar.methods.data.recovery.labels import as_images, static_logits
from attar.methods.data.recovery.recover import Batch, Recoverer, Recovery
from attar.methods.data.recovery.teacher import frozen, taught
from attar.nets import Net, ResNet18
from attar.run import SGD, Cosine, Run
from attar.spec import method
from attar.train.training import Training

PIXELS = {"kind": "adam", "beta1": 0.5, "beta2": 0.9}  # the optimizer in every released recipe
SMALL: dict[str, Any] = {
    "steps": 150,
    "optimizer": {**PIXELS, "lr": 0.1},
    "alpha": 0.05,
    "jitter": 0,
    "crops": None,
    "net": {"kind": "convnet", "depth": 2, "width": 32, "norm": "batch"},
    "squeeze": {"steps": 320, "batch": 256, "optimizer": {"kind": "adamw", "lr": 0.005}, "augment": "none"},
}  # ten images a class on 14 pixels; the teacher sees as many images as four epochs of 20,000
CIFAR: dict[str, Any] = {
    "steps": 1000,
    "optimizer": {**PIXELS, "lr": 0.25},
    "alpha": 0.01,
    "jitter": 4,
    "crops": None,
    "temperature": 30.0,
}
TINY: dict[str, Any] = {
    "steps": 4000,
    "optimizer": {**PIXELS, "lr": 0.1},
    "alpha": 1.0,
    "jitter": 4,
    "both_ways": True,
}


@method
class SqueezeRecover(Recovery):
    """Turn a trained classifier into images, one of every class at a time (Yin et al. 2023, arXiv 2306.13092).

    Every batch starts from noise and is moved until the teacher names its classes and its batch norms see the
    statistics they saw in the real data, which are not looked at again. The images teach well only with labels that
    the teacher gives to each of their views (`attar.methods.data.recovery.labels`): with hard labels real ones are
    better. CDA and DWA are this method with other fields.
    """

    version: ClassVar = 1
    protocol: ClassVar = "sre2l"  # of evaluation: with labels that the teacher gives to every view
    presets: ClassVar = {"small": SMALL, "cifar": CIFAR, "tiny-imagenet": TINY}

    ipc: int = Field(10, ge=1)  # images per class
    classes: int = Field(100, ge=1)  # recovered together, one image of each: they share the batch norms' statistics
    init: Literal["noise", "real"] = "noise"  # N(0, 1) in the space networks see, or one real image each (DWA)
    labels: Literal["hard", "static"] = "hard"  # of the set; static: the teacher's, of the images as they are
    temperature: float = Field(20.0, gt=0)  # of static labels; the paper trains students with 20, on CIFAR-100 30
    net: Net = ResNet18(norm="batch")  # the teacher
    squeeze: Training = Training(
        epochs=199,
        batch=128,
        optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=Cosine(),
        augment="crop-and-flip",
    )  # of the teacher; the paper's for 32 px

    def __call__(self, run: Run, *, data: Images, teacher: Student | None = None) -> DistilledSet:
        hints = {"protocol": self.protocol, "temperature": self.temperature}
        synthetic = DistilledSet.from_noise(data, self.ipc, run.rng("init"), **hints)
        chosen = data.draw(self.ipc, run.rng("real")) if self.init == "real" else None
        known = taught(run, data, teacher, self.net, self.squeeze)
        synthetic.labellers = [known]
        groups = [group.to(run.device) for group in torch.arange(data.num_classes).split(self.classes)]
        images = run.keep("images", synthetic.images)  # filled batch by batch; until then what each starts from
        if chosen is not None:
            images.copy_(data.normalised(chosen.flatten()))
        variable = torch.zeros(len(groups[0]), *images.shape[1:], device=images.device)
        recoverer = Recoverer(run, self, [frozen(known, run.device)], variable, data)

        def place(number: int) -> Tensor:  # rows of the set, class-major
            index, group = divmod(number, len(groups))
            return groups[group] * self.ipc + index

        def batch(number: int) -> Batch:
            return Batch(images[place(number)].clone(), lambda rows: rows, groups[number % len(groups)])

        def release(number: int, rows: Tensor) -> None:
            images[place(number)] = rows

        recoverer.recover(batch, self.ipc * len(groups), release)
        if self.labels == "static":
            told = static_logits([frozen(known, run.device)], as_images(synthetic, data))
            synthetic.labels = (told / self.temperature).softmax(1)
        return synthetic

"""INFER: compensators that all classes share, added to a few real images of each."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.artifacts import DistilledSet, Student
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.data.recovery.labels import as_images, static_logits
from attar.methods.data.recovery.recover import Batch, Recoverer, Recovery, valid
from attar.methods.data.recovery.teacher import frozen, taught
from attar.methods.data.sre2l import CIFAR, SMALL
from attar.nets import VGG11, MobileNetV2, Net, ResNet18, ShuffleNetV1
from attar.run import SGD, Cosine, Run
from attar.spec import method
from attar.train.training import Training

_SHARED = {key: value for key, value in SMALL.items() if key != "net"}
_SMALL_NETS: list[dict[str, Any]] = [
    {"kind": "convnet", "depth": 2, "width": 32, "norm": "batch"},
    {"kind": "resnet18", "width": 8, "norm": "batch"},
]


def affordable(ipc: int, networks: int, classes: int) -> int:
    """Return ⌊ipc / (M / C + 1)⌋, how many real images a class fit beside their compensators (arXiv 2408.06927).

    `networks` compensators to every real image of a class are shared by all classes, so each class pays M / C images.

    >>> affordable(10, networks=4, classes=100), affordable(10, networks=4, classes=10)
    (9, 7)
    """
    return ipc * classes // (networks + classes)


def stored_floats(natural: int, networks: int, classes: int, pixels: int) -> int:
    """Return the numbers that are stored: real images, compensators, and one soft label for each composed image."""
    images = natural * (classes + networks) * pixels
    return images + (networks + 1) * natural * classes * classes


@method
class FeatureCompensator(Recovery):
    """Add to real images what several networks miss in them, one compensator for all classes (arXiv 2408.06927).

    Zhang et al. 2025. For every network and every image index, one picture u is optimised so that x + u, with x a real
    image of each class, is classified well and matches the network's batch norms. The set holds the real images and
    all x + u; what has to be stored is the real images, the u and static labels, and `ipc` is what that amounts to.
    Labels are the mean logits of the networks, read once; students mix them linearly, as logits
    (`LabelledViews(…, "static")` with MixUp). A method for many classes: with few, compensators are dear.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {**_SHARED, "nets": _SMALL_NETS, "optimizer": {**SMALL["optimizer"], "lr": 0.1}},
        "cifar": {**CIFAR, "alpha": 1.0},
    }

    ipc: int = Field(10, ge=1)  # images per class that the stored pixels amount to
    natural: int | None = Field(None, ge=1)  # real images per class; none: as many as `ipc` affords
    nets: tuple[Net, ...] = (
        ResNet18(norm="batch"),
        MobileNetV2(multiplier=1.0),
        VGG11(norm="batch"),
        ShuffleNetV1(groups=2, width=200),
    )  # M networks with batch norm, the paper's on CIFAR but for the third: there EfficientNet-B0
    steps: int = Field(2000, ge=1)  # of every compensator; the paper's for ImageNet-1K, 1000 on CIFAR
    temperature: float = Field(30.0, gt=0)  # of the labels, and of students
    squeeze: Training = Training(
        epochs=199,
        batch=128,
        optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=Cosine(),
        augment="crop-and-flip",
    )  # of the networks

    def __call__(self, run: Run, *, data: Images) -> DistilledSet:
        self.real_images(data)
        known = [
            taught(run, data, None, net, self.squeeze, name=f"teacher {number}") for number, net in enumerate(self.nets)
        ]
        made = self.compensate(run, data, known)
        made.labellers = known
        return made

    def compensate(self, run: Run, data: Images, known: list[Student]) -> DistilledSet:
        """Return the set composed with networks that are already trained."""
        each, count = self.real_images(data), data.num_classes
        networks: list[nn.Module] = [frozen(student, run.device) for student in known]
        real = data.per_class(each, run.rng("real"))  # [classes, natural, C, S, S]
        shape = real.shape[2:]
        found = run.keep("compensators", torch.zeros(len(networks) * each, *shape, device=real.device))
        recoverer = Recoverer(run, self, networks, torch.zeros(1, *shape, device=real.device), data)
        labels = torch.arange(count, device=real.device)

        def batch(number: int) -> Batch:
            network, index = divmod(number, each)
            start = torch.zeros(1, *shape, device=real.device)
            # the compensator itself has no range: what must be a picture is its sum with each real image
            return Batch(start, lambda shared: real[:, index] + shared, labels, network, clamp=False)

        def release(number: int, shared: Tensor) -> None:
            found[number] = shared[0]

        recoverer.recover(batch, len(found), release)
        return self.composed(data, real, found, known)

    def composed(self, data: Images, real: Tensor, found: Tensor, known: list[Student]) -> DistilledSet:
        """Return real images `[classes, n, …]` and their sums with compensators `[M · n, …]`, with static labels."""
        networks = [frozen(student, real.device) for student in known]  # as they were trained, whatever the adjustment
        count, each = real.shape[:2]
        sums = real.repeat(1, len(networks), 1, 1, 1) + found
        images = torch.cat([real, valid(data, sums.flatten(0, 1)).view_as(sums)], 1).flatten(0, 1)
        labels = torch.arange(count, device=real.device).repeat_interleave((len(networks) + 1) * each)
        stored = stored_floats(each, len(networks), count, real[0, 0].numel())
        hints = {"protocol": "infer", "natural": each, "compensators": len(found), "stored_floats": stored}
        made = DistilledSet(images, labels, data, {**hints, "temperature": self.temperature})
        made.labels = (static_logits(networks, as_images(made, data)) / self.temperature).softmax(1)
        return made

    def real_images(self, data: Images) -> int:
        """Return how many real images of each class there are.

        Raises:
            RecipeError: the budget does not pay for one.
            DataError: a class has fewer.
        """
        each = affordable(self.ipc, len(self.nets), data.num_classes) if self.natural is None else self.natural
        if each < 1:
            least = next(ipc for ipc in range(1, 10**6) if affordable(ipc, len(self.nets), data.num_classes))
            raise RecipeError(
                f"{self.ipc} images a class do not pay for one real image and its share of {len(self.nets)} "
                f"compensators with {data.num_classes} classes; set ipc to at least {least}, or take fewer nets"
            )
        data.draw(each, torch.Generator().manual_seed(0))  # refuses a class that is too small before any work is done
        return each

"""Networks in whose features generators are compared with data: a classifier of the data, or a packaged encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from attar import metrics
from attar.artifacts import Student
from attar.data import Images
from attar.data.samples import ImageSamples
from attar.errors import DataError
from attar.nets import ConvNet, efficientnet
from attar.nets.network import Network
from attar.run import SGD, Cosine, Run
from attar.train.network import TrainNetwork
from attar.train.training import Training, predict

Features = Literal["classifier", "efficientnet-lite0"]
CHUNK = 256  # pictures that go through at once
SIGHT = 96  # pixels a side that EfficientNet-Lite0 is shown: a fifth of the time of the 224 it was trained at
LARGE_FROM = 28  # pixels a side
SMALL, LARGE = ConvNet(depth=2, width=16), ConvNet(depth=3, width=32)  # classifiers
TRAINING = Training(steps=600, batch=128, optimizer=SGD(lr=0.05, momentum=0.9, weight_decay=5e-4), schedule=Cosine())


class Judge(ABC):
    """A network that looks at pictures `[n, C, H, W]` in [-1, 1]: by its features, and by what it takes them for.

    Attributes:
        name: what results say of it.
    """

    name: str

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Return the features `[n, D]` of pixels `[n, C, H, W]` in [0, 1], a chunk at a time."""

    @abstractmethod
    def right(self, x: Tensor, which: Tensor) -> Tensor:
        """Return whether each picture `[n, C, H, W]` is taken for what was asked, the conditions numbered `[n]`."""

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the features `[n, D]` of pictures in [-1, 1], clipped to that range as pictures are."""
        pixels = ((x.float().cpu() + 1) / 2).clamp(0, 1)
        return torch.cat([self.embed(part) for part in pixels.split(CHUNK)])


class ClassifierJudge(Judge):
    """A classifier of the data itself, trained as a stage; pictures with captions are right in the caption's class.

    Args:
        student: the classifier.
        data: what it was trained on.
    """

    def __init__(self, student: Student, data: ImageSamples) -> None:
        self.module, self.like = student.module.eval(), data.images
        self.name = f"classifier of {data.source}"
        self.classes = torch.zeros(len(data.conditions), dtype=torch.long)
        self.classes[data.which.cpu()] = data.images.labels.cpu()

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the input of its linear head."""
        made: Tensor = self.module.embed(self.like.normalise(pixels))  # type: ignore[operator]
        return made

    @torch.no_grad()
    def right(self, x: Tensor, which: Tensor) -> Tensor:
        """Return whether the largest logit is that of the class asked for `[n]`."""
        head: Any = self.module.head
        return head(self.features(x)).argmax(1) == self.classes[which.cpu()]

    def accuracy(self, images: Images) -> float:
        """Return its accuracy on labelled images."""
        return metrics.accuracy(predict(self.module, images), images.labels)


@dataclass
class PackagedJudge(Judge):
    """EfficientNet-Lite0 with ImageNet weights; a picture is taken for what the nearest real one shows.

    Near by the cosine of features, from whose every number the mean over the real pictures is taken.

    Attributes:
        known: real pictures with the names of what they show.
    """

    known: ImageSamples
    name: str = f"EfficientNet-Lite0 at {SIGHT} pixels"

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the input `[n, 1280]` of its linear head; grey pictures are shown in three equal channels."""
        if pixels.shape[1] not in (1, 3):
            raise DataError(f"EfficientNet-Lite0 sees one or three channels; these samples have {pixels.shape[1]}")
        x = functional.interpolate(pixels.expand(-1, 3, -1, -1), size=(SIGHT, SIGHT), mode="bilinear")
        return self._network.embed((x - efficientnet.MEAN) / efficientnet.STD)

    def right(self, x: Tensor, which: Tensor) -> Tensor:
        """Return whether the nearest real picture has the name asked for `[n]`."""
        real = self.known_features
        centre = real.mean(0)
        near = functional.normalize(self.features(x) - centre) @ functional.normalize(real - centre).T
        return self.known.which.cpu()[near.argmax(1)] == which.cpu()

    def features(self, x: Tensor) -> Tensor:
        """Return the features `[n, D]` of pictures; those of the known ones, which take longest, are computed once."""
        return self.known_features if x is self.known_pictures else super().features(x)

    @cached_property
    def known_pictures(self) -> Tensor:
        """The real pictures `[N, C, H, W]` in [-1, 1]."""
        return self.known.images.unit().cpu() * 2 - 1

    @cached_property
    def known_features(self) -> Tensor:
        """The features of the real pictures `[N, 1280]`."""
        return super().features(self.known_pictures)

    @cached_property
    def _network(self) -> Network:
        return efficientnet.pretrained_efficientnet_lite0().requires_grad_(False)


def judge_of(run: Run, data: ImageSamples, kind: Features | None = None) -> Judge:
    """Return the judge of a kind; none means the packaged encoder for captions, a classifier for classes.

    A classifier is trained as a stage that all runs share: over 97 % on digits, in seconds.
    """
    chosen = kind or ("efficientnet-lite0" if data.vectors is not None else "classifier")
    if chosen == "efficientnet-lite0":
        return PackagedJudge(data)
    net = LARGE if data.images.size >= LARGE_FROM else SMALL
    return ClassifierJudge(run.stage("judge", TrainNetwork(net=net, training=TRAINING), data=data.images), data)

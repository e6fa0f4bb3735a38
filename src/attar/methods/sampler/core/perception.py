"""How alike pictures look to a classifier of the data, trained as a stage: what stands for LPIPS here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attar.artifacts.pipeline import Pipeline
from attar.data import Images, Samples
from attar.data.samples import ImageSamples
from attar.errors import DataError, RecipeError
from attar.losses.denoising import squared
from attar.methods.sampler.core.distillation import Lesson
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.nets import ConvNet, Net
from attar.spec import spec
from attar.train.network import TrainNetwork
from attar.train.training import Training


@dataclass(frozen=True, eq=False)
class Sight:
    """How samples are seen as pictures in [-1, 1] with the channels of the data: latents by a pipeline's decoder."""

    data: ImageSamples
    pipeline: Pipeline | None = None

    @property
    def images(self) -> Images:
        """The pictures of the data."""
        return self.data.images

    @classmethod
    def of(cls, data: Samples, given: GivenTeacher | None) -> Sight | None:
        """Return how the samples of a teacher that was given are seen; none where the data are no pictures."""
        pipeline = given.given if given is not None and isinstance(given.given, Pipeline) else None
        return cls(data, pipeline) if isinstance(data, ImageSamples) else None

    @classmethod
    def itself(cls, data: Samples) -> Sight:
        """Return how samples are seen that are pictures.

        Raises:
            DataError: they are none.
        """
        if not isinstance(data, ImageSamples):
            raise DataError(f"{data.source} has no pictures for a network to look at")
        return cls(data)

    def __call__(self, x: Tensor) -> Tensor:
        """Return pictures `[n, C, H, W]` of samples, with their gradients."""
        if self.pipeline is None:
            return x
        seen = self.pipeline.pixels(x)
        return seen.mean(1, keepdim=True) if self.images.channels == 1 else seen


class Perception:
    """The distance of pictures in the maps of a frozen classifier, each map of unit length at each of its places.

    Args:
        module: the classifier.
        like: the pictures it was trained on.
        sight: how samples are seen as pictures; none: they are some.
    """

    def __init__(self, module: Any, like: Any, sight: Sight | None = None) -> None:
        self.module, self.like, self.sight = module.eval().requires_grad_(False), like, sight

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over maps and places of ‖φ(x) − φ(y)‖² for pictures in [-1, 1] `[n, C, H, W]`: `[n]`."""
        shown = [z if self.sight is None else self.sight(z) for z in (x, y)]
        maps = [self.module.features(self.like.normalise((z + 1) / 2))[0] for z in shown]
        return torch.stack([squared(unit(a), unit(b)) * a.shape[1] for a, b in zip(*maps, strict=True)]).mean(0)


def unit(maps: Tensor) -> Tensor:
    """Return maps `[n, C, h, w]` of length 1 over the channels."""
    return maps / (maps.square().sum(1, keepdim=True) + 1e-10).sqrt()


@spec
class Perceptual:
    """The classifier of the data in whose maps pictures are compared, where a paper takes LPIPS."""

    net: Net = ConvNet(depth=3, width=32)
    training: Training = Training(epochs=10)

    def check(self, lesson: Lesson, instead: str) -> None:
        """Refuse samples that no classifier of pictures can compare; `instead` says how to do without.

        Raises:
            RecipeError: samples that are no pictures with labels.
        """
        if lesson.given.get("sight") is None:
            raise RecipeError(
                f"a perceptual distance is one of pictures with labels, and {lesson.data.source} is none; set {instead}"
            )

    def build(self, lesson: Lesson) -> Perception:
        """Return the distance of samples as `lesson.given["sight"]` sees them, its classifier trained in a stage."""
        sight: Sight = lesson.given["sight"]
        images = sight.images
        judge = lesson.run.stage("features", TrainNetwork(net=self.net, training=self.training), data=images)
        return Perception(judge.module.to(lesson.run.device), images, sight)

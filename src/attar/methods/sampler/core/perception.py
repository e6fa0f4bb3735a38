"""How alike pictures look to a classifier of the data, trained as a stage: what stands for LPIPS here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attar.data.samples import ImageSamples
from attar.errors import RecipeError
from attar.losses.denoising import squared
from attar.methods.sampler.core.distillation import Lesson
from attar.nets import ConvNet, Net
from attar.spec import spec
from attar.train.network import TrainNetwork
from attar.train.training import Training


class Perception:
    """The distance of pictures in the maps of a frozen classifier, each map of unit length at each of its places.

    Args:
        module: the classifier.
        like: the pictures it was trained on.
    """

    def __init__(self, module: Any, like: Any) -> None:
        self.module, self.like = module.eval().requires_grad_(False), like

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over maps and places of ‖φ(x) − φ(y)‖² for pictures in [-1, 1] `[n, C, H, W]`: `[n]`."""
        maps = [self.module.features(self.like.normalise((z + 1) / 2))[0] for z in (x, y)]
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
        if not isinstance(lesson.data, ImageSamples):
            raise RecipeError(
                f"a perceptual distance is one of pictures with labels, and {lesson.data.source} is none; set {instead}"
            )

    def build(self, lesson: Lesson) -> Perception:
        """Return the distance, its classifier trained in a stage."""
        assert isinstance(lesson.data, ImageSamples)
        images = lesson.data.images
        judge = lesson.run.stage("features", TrainNetwork(net=self.net, training=self.training), data=images)
        return Perception(judge.module.to(lesson.run.device), images)

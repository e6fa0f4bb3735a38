"""Rewards: how well a sample fits its condition, by a classifier, a dual encoder, a closed form, or any function.

A reward scores samples `[n, *shape]` as generators make them, told what the generator was told: `score(x, condition)`
gives `[n]`, more is better, with gradients to x where it has some. Samples told nothing (the null condition) score 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attar.artifacts import Student, load
from attar.artifacts.dual import DualStudent
from attar.data import Samples
from attar.data.samples import ImageSamples, PointSamples
from attar.diffusion import Flow
from attar.diffusion.view import Condition
from attar.errors import AttarError, DataError
from attar.run import Run
from attar.train.judges import LARGE, LARGE_FROM, SMALL, TRAINING, ClassifierJudge
from attar.train.network import TrainNetwork

Judgement = Callable[[Tensor, Condition], Tensor]  # samples [n, *shape] and conditions to scores [n]


class Reward(ABC):
    """How well samples fit their conditions, by the names of these.

    Args:
        data: whose conditions they are.
    """

    def __init__(self, data: Samples) -> None:
        self.vectors, self.labels = data.vectors, len(data.conditions)

    @abstractmethod
    def fits(self, x: Tensor, which: Tensor) -> Tensor:
        """Return the scores `[n]` of samples `[n, *shape]` for the names numbered `which` `[n]`."""

    def score(self, x: Tensor, condition: Condition) -> Tensor:
        """Return the scores `[n]`, 0 where nothing was told."""
        which = self.named(condition, x)
        return torch.where(which < 0, torch.zeros_like(x.flatten(1)[:, 0]), self.fits(x, which.clamp_min(0)))

    def named(self, condition: Condition, x: Tensor) -> Tensor:
        """Return the numbers `[n]` of the names that conditions stand for, −1 for none."""
        if not isinstance(condition, Tensor):
            return torch.full((len(x),), -1, device=x.device)
        if self.vectors is None:
            return torch.where(condition == self.labels, -1, condition)
        nearest = torch.cdist(condition.float(), self.vectors.to(condition.device)).argmin(1)
        return torch.where((condition == 0).all(1), -1, nearest)


class ClassReward(Reward):
    """log p(class | picture) of a classifier; the class of a caption is that of its pictures.

    Args:
        judge: the classifier, of the data's classes.
        data: pictures.
    """

    def __init__(self, judge: ClassifierJudge, data: ImageSamples) -> None:
        super().__init__(data)
        self.module: Any = judge.module.requires_grad_(False)
        self.classes, self.images = judge.classes, data.images

    def fits(self, x: Tensor, which: Tensor) -> Tensor:
        """Return log p(class | picture) `[n]` of pictures in [-1, 1], clipped to that range."""
        logits = self.module(self.images.normalise(pixels(x)))
        classes = self.classes.to(which.device)[which]
        picked: Tensor = logits.log_softmax(1).gather(1, classes[:, None])
        return picked[:, 0]


class AgreementReward(Reward):
    """How near a dual encoder puts a picture to its caption, as CLIP scores: the encoder's scale times the cosine.

    Args:
        encoder: its images have the data's form.
        data: pictures with captions, or classes that are named in the encoder's template.

    Raises:
        DataError: it reads pictures of another form.
    """

    def __init__(self, encoder: DualStudent, data: ImageSamples) -> None:
        super().__init__(data)
        if (encoder.channels, encoder.size) != (data.images.channels, data.images.size):
            raise DataError(
                f"the reward reads {encoder.channels} channels of {encoder.size} pixels a side, {data.source} has "
                f"{data.images.channels} of {data.images.size}"
            )
        self.module, self.images = encoder.module.eval().requires_grad_(False), data.images
        said = data.conditions if data.vectors is not None else [encoder.template.format(c) for c in data.conditions]
        self.said = encoder.texts(list(said))

    def fits(self, x: Tensor, which: Tensor) -> Tensor:
        """Return the scores `[n]` of pictures in [-1, 1], clipped to that range."""
        seen: Tensor = self.module.images(self.images.normalise(pixels(x)))
        return (seen * self.said[which]).sum(1) * self.module.scale


class PosteriorReward(Reward):
    """log p(class | point) of a mixture in closed form."""

    def __init__(self, data: PointSamples) -> None:
        super().__init__(data)
        self.mixture = data.mixture

    def fits(self, x: Tensor, which: Tensor) -> Tensor:
        """Return log p(class | point) `[n]`."""
        mixture, clean, flow = self.mixture, torch.zeros((), dtype=torch.float64), Flow()
        points, which = x.double().to(mixture.means.device), which.to(mixture.means.device)
        of_class = mixture.log_density(points, clean, flow, which)
        share = mixture.log_weights(len(x), None)  # p(class | x) ∝ p(class) p(x | class)
        own = torch.where(mixture.labels == which[:, None], share, -torch.inf).logsumexp(1)
        return (of_class + own - mixture.log_density(points, clean, flow)).to(x)


class Written(Reward):
    """A function of samples and conditions that the user wrote."""

    def __init__(self, data: Samples, function: Judgement) -> None:
        super().__init__(data)
        self.function = function

    def score(self, x: Tensor, condition: Condition) -> Tensor:
        """Return what the function says `[n]`."""
        return self.function(x, condition)

    def fits(self, x: Tensor, which: Tensor) -> Tensor:
        """Names are not asked for."""
        raise NotImplementedError("a written reward is told conditions as they are")


class GivenReward:
    """What a user names as reward: a classifier, a dual encoder, or a function `score(x, condition) -> [n]`.

    Args:
        given: one of them.
    """

    kind = "reward"

    def __init__(self, given: Any) -> None:
        self.given = given

    @classmethod
    def of(cls, value: Any) -> GivenReward:
        """Return the reward that a value stands for; a name is the folder of a run or artifact.

        Raises:
            AttarError: it stands for none.
        """
        if isinstance(value, GivenReward):
            return value
        if isinstance(value, str | Path):
            value = load(value)
        if not isinstance(value, Student | DualStudent) and not callable(value):
            kind = getattr(value, "kind", type(value).__name__)
            raise AttarError(f"a {kind} is no reward; name a classifier or a dual encoder, or hand over a function")
        return cls(value)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, or the name of a function."""
        own = getattr(self.given, "fingerprint", None)
        return str(own or f"{self.given.__module__}.{getattr(self.given, '__qualname__', type(self.given).__name__)}")


def reward_of(run: Run, data: Samples, given: GivenReward | None = None, judging: TrainNetwork | None = None) -> Reward:
    """Return the reward that was given; without one, that of a classifier of the data trained as a stage, `judging`.

    Points with a closed form need no classifier.

    Raises:
        DataError: a network that does not read this data, or data without conditions or pictures.
    """
    value = None if given is None else given.given
    if callable(value) and not isinstance(value, Student | DualStudent):
        return Written(data, value)
    if not data.conditions:
        raise DataError(f"{data.source} has no conditions that samples could fit; hand over a function as reward")
    if isinstance(data, PointSamples) and value is None:
        return PosteriorReward(data)
    if not isinstance(data, ImageSamples):
        raise DataError(f"{data.source} has no pictures for a network to look at; hand over a function as reward")
    if value is None:
        value = run.stage("judge", judging or judging_of(data), data=data.images)
    value.module.to(run.device)
    if isinstance(value, DualStudent):
        return AgreementReward(value, data)
    of, images = (value.channels, value.size, value.classes), data.images
    if of != (images.channels, images.size, tuple(images.classes)):
        raise DataError(
            f"the reward is a classifier of {list(value.classes)[:3]}… on {value.size} pixels a side, {data.source} "
            f"has {list(images.classes)[:3]}… on {images.size}; train one on this data"
        )
    return ClassReward(ClassifierJudge(value, data), data)


def judging_of(data: ImageSamples) -> TrainNetwork:
    """Return how the classifier is trained in whose features samples of the data are measured: the same stage."""
    return TrainNetwork(net=LARGE if data.images.size >= LARGE_FROM else SMALL, training=TRAINING)


def pixels(x: Tensor) -> Tensor:
    """Return samples in [-1, 1] as pixels in [0, 1], without gradient where they are clipped."""
    return ((x + 1) / 2).clamp(0, 1)

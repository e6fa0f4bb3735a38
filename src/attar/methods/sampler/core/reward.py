"""Rewards: how well a sample fits its condition, by a classifier, a dual encoder, a closed form, or any function.

A reward scores samples `[n, *shape]` as generators make them, told what the generator was told: `score(x, condition)`
gives `[n]`, more is better, with gradients to x where it has some. Samples told nothing (the null condition) score 0.
Latents of a pipeline are seen as the pictures that it decodes them to, with gradients through the decoder.
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
from attar.methods.sampler.core.perception import Sight
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
        judge: the classifier, of the pictures' classes.
        data: whose conditions they are.
        sight: how samples are seen as pictures; none: they are some.
    """

    def __init__(self, judge: ClassifierJudge, data: Samples, sight: Sight | None = None) -> None:
        super().__init__(data)
        self.module: Any = judge.module.requires_grad_(False)
        self.classes, self.sight = judge.classes, sight or Sight.itself(data)

    def fits(self, x: Tensor, which: Tensor) -> Tensor:
        """Return log p(class | picture) `[n]` of samples, whose pictures are clipped to their range."""
        logits = self.module(self.sight.images.normalise(pixels(self.sight(x))))
        classes = self.classes.to(which.device)[which]
        picked: Tensor = logits.log_softmax(1).gather(1, classes[:, None])
        return picked[:, 0]


class AgreementReward(Reward):
    """How near a dual encoder puts a picture to its caption, as CLIP scores: the encoder's scale times the cosine.

    Args:
        encoder: its images have the form of the pictures.
        data: with captions, or classes that are named in the encoder's template.
        sight: how samples are seen as pictures; none: they are some.

    Raises:
        DataError: it reads pictures of another form.
    """

    def __init__(self, encoder: DualStudent, data: Samples, sight: Sight | None = None) -> None:
        super().__init__(data)
        sight = sight or Sight.itself(data)
        images = sight.images
        if (encoder.channels, encoder.size) != (images.channels, images.size):
            raise DataError(
                f"the reward reads {encoder.channels} channels of {encoder.size} pixels a side, {data.source} has "
                f"{images.channels} of {images.size}"
            )
        self.module, self.sight = encoder.module.eval().requires_grad_(False), sight
        captions = sight.data.vectors is not None  # a pipeline makes vectors of the names of classes, too
        said = data.conditions if captions else [encoder.template.format(c) for c in data.conditions]
        self.said = encoder.texts(list(said))

    def fits(self, x: Tensor, which: Tensor) -> Tensor:
        """Return the scores `[n]` of samples, whose pictures are clipped to their range."""
        seen: Tensor = self.module.images(self.sight.images.normalise(pixels(self.sight(x))))
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
    """A function that the user wrote, of samples and conditions; of pictures in [-1, 1], where there are any."""

    def __init__(self, data: Samples, function: Judgement, sight: Sight | None = None) -> None:
        super().__init__(data)
        self.function, self.sight = function, sight

    def score(self, x: Tensor, condition: Condition) -> Tensor:
        """Return what the function says `[n]`."""
        return self.function(x if self.sight is None else self.sight(x), condition)

    def fits(self, x: Tensor, which: Tensor) -> Tensor:
        """Names are not asked for."""
        raise NotImplementedError("a written reward is told conditions as they are")


class GivenReward:
    """What a user names as reward: a classifier, a dual encoder, or a function `score(x, condition) -> [n]`.

    Args:
        given: one of them.
    """

    kind = "reward"
    example = "a classifier's or dual encoder's run or artifact folder"

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


def reward_of(
    run: Run,
    data: Samples,
    reward: GivenReward | None = None,
    judging: TrainNetwork | None = None,
    sight: Sight | None = None,
) -> Reward:
    """Return the reward that was given; without one, that of a classifier of the data trained as a stage, `judging`.

    Networks look at samples as `sight` sees them; without it these are pictures themselves. Points with a closed form
    need no classifier.

    Raises:
        DataError: a network that does not read this data, or data without conditions or pictures.
    """
    sight = sight or Sight.of(data, None)
    value = None if reward is None else reward.given
    if callable(value) and not isinstance(value, Student | DualStudent):
        return Written(data, value, sight)
    if not data.conditions:
        raise DataError(f"{data.source} has no conditions that samples could fit; hand over a function as reward")
    if isinstance(data, PointSamples) and value is None:
        return PosteriorReward(data)
    if sight is None:
        raise DataError(f"{data.source} has no pictures for a network to look at; hand over a function as reward")
    images = sight.images
    if value is None:
        value = run.stage("judge", judging or judging_of(sight.data), data=images)
    value.module.to(run.device)
    if isinstance(value, DualStudent):
        return AgreementReward(value, data, sight)
    of = (value.channels, value.size, value.classes)
    if of != (images.channels, images.size, tuple(images.classes)):
        raise DataError(
            f"the reward is a classifier of {list(value.classes)[:3]}… on {value.size} pixels a side, {data.source} "
            f"has {list(images.classes)[:3]}… on {images.size}; train one on this data"
        )
    return ClassReward(ClassifierJudge(value, sight.data), data, sight)


def judging_of(data: ImageSamples) -> TrainNetwork:
    """Return how the classifier is trained in whose features samples of the data are measured: the same stage."""
    return TrainNetwork(net=LARGE if data.images.size >= LARGE_FROM else SMALL, training=TRAINING)


def pixels(x: Tensor) -> Tensor:
    """Return samples in [-1, 1] as pixels in [0, 1], without gradient where they are clipped."""
    return ((x + 1) / 2).clamp(0, 1)

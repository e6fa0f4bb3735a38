"""A small reward that learns from an expert's preferences, and through which alone gradients reach the student."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attar import nets
from attar.data import Samples
from attar.diffusion.view import Condition
from attar.losses.preference import AgainstReal, pairwise_preference
from attar.methods.sampler.core.distillation import Lesson, Moment
from attar.methods.sampler.core.reward import Reward
from attar.nets.initialise import seeded
from attar.run import Adam, Learner, Optimizer
from attar.spec import spec

FIRST_SCALE = 10.0  # of cosines, when a proxy begins to learn


class TwoTowers(nn.Module):
    """The cosine of what a sample and its condition become, both vectors of length 1; `log_scale` is for learning."""

    def __init__(self, data: Samples, hidden: int, dimensions: int) -> None:
        super().__init__()
        self.labels = 0 if data.vectors is not None else len(data.conditions)
        told = self.labels + 1 if data.vectors is None else data.vectors.shape[1]  # a row for no condition
        self.seen = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(data.shape), hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, dimensions),
        )  # fmt: skip
        self.told = nn.Linear(told, dimensions, bias=False)
        self.log_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to 10."""
        nn.init.constant_(self.log_scale, math.log(FIRST_SCALE))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """Return cosines `[n]` of samples `[n, *shape]` and their conditions."""
        if isinstance(condition, Tensor) and condition.is_floating_point():
            named = condition.to(x)
        else:
            label = condition if isinstance(condition, Tensor) else torch.full((len(x),), self.labels, device=x.device)
            named = functional.one_hot(label, self.told.in_features).to(x)
        return functional.cosine_similarity(self.seen(x), self.told(named), dim=1)


@spec
class Proxy:
    """A small reward on samples as they are (on latents, where these are generated), taught by pairs."""

    hidden: int = Field(256, ge=1)  # units of its two hidden layers
    dimensions: int = Field(64, ge=1)  # of its vectors
    sharpness: float = Field(1.0, gt=0)  # what the expert's scores are multiplied by before they are compared
    against_real: AgainstReal = "expert"  # whose word counts where a made and a real sample are compared
    weight: float = Field(1.0, ge=0)  # of its loss; the paper's rm_loss_scale
    optimizer: Optimizer = Adam(lr=1e-3)

    def build(self, lesson: Lesson, expert: Reward, name: str = "proxy") -> LatentProxy:
        """Return the proxy with its learner; call it in a method's `build`."""
        with seeded(torch.Generator()):
            module = TwoTowers(lesson.data, self.hidden, self.dimensions)
        nets.reset(module, lesson.run.rng(name))
        learner = lesson.run.learner(name, module.to(lesson.run.device), self.optimizer)
        return LatentProxy(self, expert, learner)


class LatentProxy:
    """A reward that is taught by another; `score` is for the student, `step` its own.

    Args:
        spec: how.
        expert: whose preferences it learns; it needs no gradient.
        learner: of the proxy.
    """

    def __init__(self, spec: Proxy, expert: Reward, learner: Learner) -> None:
        self.spec, self.expert, self.learner = spec, expert, learner

    def score(self, x: Tensor, condition: Condition) -> Tensor:
        """Return cosines in [-1, 1] `[n]`, with gradients to the samples."""
        assert self.learner.module is not None
        scores: Tensor = self.learner.module(x, condition)
        return scores

    def step(self, moment: Moment, candidates: Sequence[Tensor], real: int | None = None) -> None:
        """Learn how the expert ranks candidates for the same conditions, each `[n, *shape]`; `real` is not made."""
        module, batch = self.learner.module, moment.batch
        assert isinstance(module, TwoTowers)
        with torch.no_grad():
            wanted = torch.stack([self.expert.score(x, batch.condition) for x in candidates], 1) * self.spec.sharpness
        scores = torch.stack([module(x.detach(), batch.condition) for x in candidates], 1) * module.log_scale.exp()
        losses = pairwise_preference(wanted, scores, real=real, against_real=self.spec.against_real)
        self.learner.update({"preference": self.spec.weight * batch.mean(losses)})

"""DMD: a student whose samples go where a teacher's score and the score of those samples differ (arXiv 2311.18828)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.artifacts.couplings import Couplings
from attar.artifacts.drawing import Drawing, Multistep, grid_of
from attar.losses.denoising import Distance, sample_distance
from attar.methods.sampler.core.adversarial import Adversary, Discriminator
from attar.methods.sampler.core.coupling import Coupling, stored
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Terms
from attar.methods.sampler.core.rollout import redrawn
from attar.methods.sampler.core.score import FakeScore, ScoreDistillation
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.times import on_levels
from attar.methods.sampler.core.training import SamplerTraining
from attar.run import AdamW, Learner
from attar.spec import method


@dataclass(eq=False)
class Beside:
    """What stands beside the student."""

    fake: FakeScore
    discriminator: Discriminator | None
    pairs: Couplings | None
    made: Tensor | None = None  # in one step


@method
class DistributionMatching(Distillation):
    """Match the law of made samples to the data's (Yin et al. 2024, DMD, arXiv 2311.18828, and DMD2, 2405.14867).

    The gradient in a sample x is (x̂_fake − x̂_real) / mean |x − x̂_real| of x noised to 2 to 98 % of the times, x̂_real
    the (guided) teacher's and x̂_fake that of a denoiser which learns the student's samples all along. Beside it, as
    asked for: square errors to where the teacher's ODE leads the same noise (DMD), several updates of the fake score
    for each of the student's, on samples of their own, and a discriminator on the fake score's blocks, whose loss these
    updates lessen, too (DMD2, `preset=dmd2`). In several steps a sample is the student's own after as many of them as
    are drawn for the batch, with a gradient through the last.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **Distillation.presets["small"],
            "train": {"steps": 2000, "batch": 128, "optimizer": {"lr": 5e-4}},
            "coupling": {"count": 4096, "steps": 12},
            "score": {"optimizer": {"lr": 1e-3}},
        },
        "dmd2": {
            "regression": 0.0,
            "score": {"updates": 5},
            "adversary": {
                "weight": 3e-3,
                "game": "softplus",
                "times": {"kind": "uniform"},
                "optimizer": {"kind": "adamw", "lr": 2e-6},
            },
        },
    }

    train: SamplerTraining = SamplerTraining(steps=100_000, batch=280, optimizer=AdamW(lr=2e-6), clip=10.0)
    score: ScoreDistillation = ScoreDistillation(optimizer=AdamW(lr=2e-6))
    regression: float = Field(0.25, ge=0)  # weight of square errors to the teacher's ends, of one step; 0: no pairs
    coupling: Coupling = Coupling(count=100_000)  # how those pairs are drawn, with the guidance of `guidance`
    distance: Distance = "l2"  # LPIPS in the paper
    adversary: Adversary = Adversary(game="softplus")  # with a weight: a discriminator of samples and data
    trunk: Literal["fake", "teacher"] = "fake"  # whose blocks it stands on; the fake score's learn with it
    telling: float = Field(0.02, gt=0)  # weight of its loss, a mean of two halves, in updates of its trunk (λ_c = 0.01)
    highest: float | None = Field(None, gt=0)  # time of the first step; none: the noisiest
    steps: int = Field(1, ge=1)  # in which samples are drawn

    @model_validator(mode="after")
    def _paired(self) -> DistributionMatching:
        if self.regression and self.steps > 1:
            raise ValueError("ends of the teacher's ODE are matched by one step; set regression=0 or steps=1")
        return self

    def drawing(self) -> Drawing:
        """Return the consistency sampler."""
        return Multistep(steps=self.steps, highest=self.highest)

    def build(self, lesson: Lesson) -> Beside:
        """Return the fake score, and the discriminator and the teacher's pairs where they count."""
        assert lesson.teacher is not None
        fake, pairs = self.score.build(lesson), None
        if self.regression:
            wanted = dataclasses.replace(self.coupling, guidance=self.guidance, teaching=self.teaching)
            given = GivenTeacher("exact" if lesson.teacher.sampler is None else lesson.teacher.sampler)
            pairs = lesson.run.stage("pairs", wanted, data=lesson.data, teacher=given)
        trunk = fake if self.trunk == "fake" else None
        discriminator = self.adversary.build(lesson, trunk=trunk) if self.adversary.weight else None
        return Beside(fake, discriminator, pairs)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the gap of both scores with the discriminator's term, and the error on stored pairs."""
        own: Beside = lesson.state
        made = self.samples(lesson, moment, list(self.noises(moment)), moment.condition)
        own.made = made.detach()
        terms = {"matching": own.fake.term(moment, made, self.teacher_of(lesson, moment))}
        if own.discriminator is not None:
            terms["adversarial"] = self.adversary.weight * own.discriminator.term(moment, made)
        yield terms
        if own.pairs is not None:
            total, embedded = moment.batch.total, self.guidance.embedded
            paired = stored(lesson, own.pairs, total, moment.phase, moment.step, embedded=embedded)
            made = self.samples(lesson, paired, [paired.batch.noise], paired.condition)
            errors = sample_distance(made, paired.batch.x0, self.distance)
            yield {"regression": self.regression * paired.batch.mean(errors)}

    def after(self, lesson: Lesson, moment: Moment) -> None:
        """Let the fake score learn the samples, and the discriminator to tell them from data."""
        own: Beside = lesson.state
        assert own.made is not None, "the student's terms come first"
        beside: Callable[[Tensor, int], Mapping[str, Tensor]] | None = None
        heads: tuple[Learner, ...] = ()
        if own.discriminator is not None and self.trunk == "fake":
            beside = functools.partial(self.told_apart, own.discriminator, moment)
            heads = (own.discriminator.learner,)
        own.fake.step(moment, functools.partial(self.anew, lesson, moment), beside, *heads)
        if own.discriminator is not None and self.trunk == "teacher":
            own.discriminator.step(moment)
        own.made = None

    def anew(self, lesson: Lesson, moment: Moment, number: int) -> Tensor:
        """Return the samples `[n, …]` of an update of the fake score: the student's own first, then others."""
        if number:
            return self.samples(lesson, moment, list(self.noises(moment, number)), moment.condition)
        made: Tensor = lesson.state.made
        return made

    def told_apart(self, discriminator: Discriminator, moment: Moment, x0: Tensor, number: int) -> Mapping[str, Tensor]:
        """Return the discriminator's loss in an update of the fake score, on the samples that it is shown."""
        fake_t, t = discriminator.noised(moment, x0, None, number)
        return {"telling": self.telling * discriminator.telling(moment, fake_t, t, None, number)}

    def noises(self, moment: Moment, *counters: int) -> Iterator[Tensor]:
        """Yield unit noise for as many steps as are drawn for the whole batch, from 1 to all of them."""
        like = moment.batch.noise
        yield moment.noise("fresh", like, *counters) if counters else like
        rng = moment.run.rng("length", moment.step, *counters)
        for number in range(int(torch.randint(self.steps, (), generator=rng))):
            yield moment.noise("again", like, *counters, number)

    def samples(self, lesson: Lesson, moment: Moment, noises: list[Tensor], condition: Any) -> Tensor:
        """Return samples `[n, …]` of as many steps as there are noises, with a gradient through the last."""
        times = on_levels(lesson.process, grid_of(lesson.process, self.steps, self.highest)[: len(noises)])
        return redrawn(lesson.view, [t.to(noises[0].device).expand(len(noises[0])) for t in times], noises, condition)

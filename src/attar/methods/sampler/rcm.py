"""rCM: continuous-time consistency, kept sharp by score distillation of the student's own roll-outs (2510.08431)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attar.diffusion.tangents import Derivative
from attar.methods.sampler.core.distillation import Lesson, Moment, Terms
from attar.methods.sampler.core.rollout import redrawn
from attar.methods.sampler.core.score import FakeScore, ScoreDistillation
from attar.methods.sampler.core.teacher import TeacherGuidance
from attar.methods.sampler.core.times import Times, on_levels
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.scm import Continuous, ContinuousConsistency
from attar.run import AdamW
from attar.spec import method

SHIFTED = Times(shift=5.0, lowest=0.02, highest=0.98)


@dataclass(eq=False)
class Regularized(Continuous):
    """The state of the tangent, and the denoiser of what the student makes; none without score distillation."""

    fake: FakeScore | None = None


@method
class RegularizedConsistency(ContinuousConsistency):
    """Cover the data by consistency, sharpen by score distillation (Zheng et al. 2025, rCM, arXiv 2510.08431).

    L = 100 · L_sCM + ‖x0 − sg(x0 − (x̂_fake − x̂_teacher) / mean |x0 − x̂_teacher|)‖², means over a sample's numbers.
    x0 is what the student draws in 1, 2, 3, 4 steps by turns, from times that are drawn and do not rise, with a
    gradient through the last step alone. Score distillation begins when the tangent has warmed up; then the fake score
    takes four updates on fresh roll-outs for each of the student's. A tangent has length 1 over the whole sample and a
    gap about 1 in each of its d numbers, so λ = score / consistency counts √d times: points want more than pictures.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **ContinuousConsistency.presets["small"],
            "guidance": {"scale": 1.0},
            "consistency": 10.0,
            "derivative": "jvp",
            "fake": {"optimizer": {"kind": "adam", "lr": 3e-4}},
        }
    }

    guidance: TeacherGuidance = TeacherGuidance(scale=5.0)
    train: SamplerTraining = SamplerTraining(
        steps=20_000, batch=256, optimizer=AdamW(lr=2e-6, beta1=0.0), clip=None, average=0.999
    )  # steps, batch and average: ours
    times: Times = Times(kind="log-normal", mean=-0.8, std=1.6)  # videos: mean 0.7
    times_for: float = Field(1.0, gt=0)
    derivative: Derivative = "semi-continuous"  # jvp, with float32 time embeddings, for 10 B parameters and videos
    width: float = Field(1e-4, gt=0)
    warmup: int = Field(1000, ge=0)
    adaptive: bool = False  # errors are all about 1 behind a normalised tangent
    steps: int = Field(4, ge=1)
    begins_at: float | None = Field(1.5582969777755349, gt=0)  # arctan 80; 1600 is sharper and less diverse
    again_at: tuple[float, ...] = (1.5, 1.4, 1.0)
    consistency: float = Field(100.0, ge=0)  # weight of L_sCM; 0: score distillation alone
    score: float = Field(1.0, ge=0)  # weight of score distillation; 0: sCM
    longest: int = Field(4, ge=1)  # steps of a roll-out, at most
    stops: Times = SHIFTED  # times of a roll-out behind its first
    fake: ScoreDistillation = ScoreDistillation(
        times=SHIFTED, fake_times=Times(shift=5.0), updates=4, optimizer=AdamW(lr=4e-7, beta1=0.0)
    )

    def build(self, lesson: Lesson) -> Regularized:
        """Return the state of the tangent, and the fake score with its learner."""
        return Regularized(**vars(super().build(lesson)), fake=self.fake.build(lesson) if self.score else None)

    def sharpens(self, lesson: Lesson, moment: Moment) -> bool:
        """Return whether score distillation has begun."""
        return lesson.state.fake is not None and moment.step >= self.warmup

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield consistency and score distillation, which share no graph, one after the other."""
        if self.consistency:
            for terms in super().terms(lesson, moment):
                yield {name: self.consistency * value for name, value in terms.items()}
        if self.sharpens(lesson, moment):
            made = self.rolled(lesson, moment, "roll-out", moment.step)
            half = lesson.state.fake.term(moment, made, self.teacher_of(lesson, moment))
            yield {"score": 2 * self.score * half}  # the add-on halves its square

    def after(self, lesson: Lesson, moment: Moment) -> None:
        """Let the fake score learn what the student draws now."""
        super().after(lesson, moment)
        if self.sharpens(lesson, moment):
            first = moment.step * self.fake.updates
            lesson.state.fake.step(moment, lambda number: self.rolled(lesson, moment, "fake roll-out", first + number))

    def rolled(self, lesson: Lesson, moment: Moment, name: str, number: int) -> Tensor:
        """Return samples `[n, …]` that the student draws in 1, 2, … `longest` steps, by turns as numbers go on."""
        batch, process = moment.batch, lesson.process
        rng = moment.run.rng(name, number)
        noisiest = lesson.student.reading.drawing.highest or process.t_max  # type: ignore[union-attr]
        times = [on_levels(process, torch.full((batch.total,), noisiest, dtype=torch.float64))]
        for _ in range(number % self.longest):
            times.append(torch.minimum(self.stops.draw(batch.total, process, rng), times[-1]))
        noise = [torch.randn(batch.total, *batch.x0.shape[1:], generator=rng) for _ in times]
        return redrawn(lesson.view, [batch.mine(t) for t in times], [batch.mine(z) for z in noise], moment.condition)

"""SANA-Sprint: a flow teacher's continuous-time consistency, and a discriminator on its features (2503.09641)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attar.data import Samples
from attar.diffusion import TrigFlow, transfer
from attar.methods.sampler.core.adversarial import Adversary, Discriminator
from attar.methods.sampler.core.distillation import Lesson, Moment, Terms
from attar.methods.sampler.core.steadying import Steadying
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance, ready, seen
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.scm import Continuous, ContinuousConsistency
from attar.run import Adam, AdamW, Run
from attar.spec import method

SMALL: dict[str, Any] = {
    **ContinuousConsistency.presets["small"],
    "guidance": {"scale": 1.0, "highest": 4.0},
    "steadying": Steadying.presets["small"],
    "adversary": {"optimizer": {"lr": 1e-3}},
}


@dataclass(eq=False)
class Fooled(Continuous):
    """The state of the tangent, and the discriminator; none without adversarial weight."""

    discriminator: Discriminator | None = None


@method
class SanaSprint(ContinuousConsistency):
    """Distil a flow teacher into 1 to 4 steps (Chen et al. 2025, SANA-Sprint, arXiv 2503.09641).

    L = e^w / (σ_d tan t) · mean (F_θ − sg(F_θ + g))² − w + 0.5 · mean (−D(x̂0 noised to s)). The teacher is seen on
    TrigFlow without loss and without training, once its labels of time are no steeper than t (`steadying`). x̂0 is
    predicted from the largest time for half of the samples; D is heads on blocks of the frozen teacher, learns by the
    hinge loss at the same s, and counts real samples with another's condition as made. g is drawn evenly from 4 to 5
    (the paper: one of 4, 4.5, 5), and the student is told g − 1 by this library's embedding.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {"small": SMALL}

    guidance: TeacherGuidance = TeacherGuidance(scale=4.0, highest=5.0, embedded=True)
    train: SamplerTraining = SamplerTraining(steps=20_000, batch=512, optimizer=AdamW(lr=1e-6), clip=0.1)
    times: Times = Times(kind="log-normal", mean=0.2, std=1.6)
    warmup: int = Field(4000, ge=0)
    steps: int = Field(2, ge=1)
    again_at: tuple[float, ...] = (1.3,)  # as released; 1.0 in the paper's ablations
    consistency: float = Field(1.0, ge=0)  # weight of L_sCM; 0: the discriminator alone
    steadying: Steadying = Steadying()
    shown: Times = Times(kind="log-normal", mean=0.2, std=1.6, at_highest=0.5)  # from which D's samples are predicted
    adversary: Adversary = Adversary(
        weight=0.5, mismatched=True, optimizer=Adam(lr=1e-6, beta1=0.0)
    )  # its rate: the student's

    def begin(self, run: Run, data: Samples, given: GivenTeacher | None, **more: Any) -> Lesson:
        """Return the lesson as it starts, with a teacher whose time is gentle."""
        data = seen(data, given)
        self.guidance.check(data)
        known = ready(run, data, given, self.teaching).sampler
        if known is not None:  # no closed form
            if self.steadying.concerns(known.net):
                known = run.stage("steady teacher", self.steadying, data=data, teacher=GivenTeacher(known))
            given = GivenTeacher(known)
        return super().begin(run, data, given, **more)

    def build(self, lesson: Lesson) -> Fooled:
        """Return the state of the tangent, and the discriminator with its learner."""
        state, times = super().build(lesson), self.adversary.times
        if times.kind == "log-normal":  # drawn for data of another deviation, like those of the tangent
            times = dataclasses.replace(times, mean=times.mean + math.log(state.process.sigma_data / self.times_for))
        adversary = dataclasses.replace(self.adversary, times=times)
        return Fooled(**vars(state), discriminator=adversary.build(lesson) if adversary.weight else None)

    def prior(self, t: Tensor, sigma_data: float) -> Tensor:
        """Return 1 / (σ_d tan t) `[n]`, bounded where t reaches 0, and 0 at pure noise."""
        return (torch.cos(t) / (sigma_data * torch.sin(t))).clamp(0.0, 1e4)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield consistency and the discriminator's word, which share no graph, one after the other."""
        if self.consistency:
            for terms in super().terms(lesson, moment):
                yield {name: self.consistency * value for name, value in terms.items()}
        if lesson.state.discriminator is not None:
            fooling = lesson.state.discriminator.term(moment, self.made(lesson, moment))
            yield {"adversarial": self.adversary.weight * fooling}

    def made(self, lesson: Lesson, moment: Moment) -> Tensor:
        """Return the student's clean samples `[n, …]` of data noised to the largest or a drawn time."""
        batch, state, rng = moment.batch, lesson.state, moment.run.rng("shown", moment.step)
        t = batch.mine(self.shown.draw(batch.total, TrigFlow(sigma_data=self.times_for), rng))
        t = t.clamp_max(state.highest)
        noise = batch.mine(torch.randn(batch.total, *batch.x0.shape[1:], generator=rng))
        x_t = state.process.diffuse(batch.x0, noise, t).to(batch.x0.dtype)
        return transfer(lesson.view, state.process).x0(x_t, t, moment.condition)

    def after(self, lesson: Lesson, moment: Moment) -> None:
        """Let the discriminator learn, and the weight of times."""
        super().after(lesson, moment)
        if lesson.state.discriminator is not None:
            lesson.state.discriminator.step(moment)

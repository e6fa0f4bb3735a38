"""Guided distillation: one network for all strengths of guidance, then ever fewer steps (arXiv 2210.03142)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.artifacts.drawing import Drawing, Encode, Overshoot
from attar.diffusion import Process, ddim, eps_of_jump
from attar.diffusion.specs import CosineProcess
from attar.diffusion.weights import denoising_weight
from attar.errors import RecipeError
from attar.losses.denoising import squared
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Phase, Terms
from attar.methods.sampler.core.guided import guidance_loss
from attar.methods.sampler.core.teacher import TeacherGuidance
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.diffusion import Diffusion
from attar.methods.sampler.progressive import Progressive, check_halves
from attar.run import Adam, Linear
from attar.spec import method


@method
class GuidedDistillation(Progressive):
    """Distil guidance, then steps (Meng et al. 2023, arXiv 2210.03142). Guidance is told as w = g − 1.

    Stage 1: L = max(α²/σ², 1) · ‖x̂(x_t, c, w) − [(1 + w) x̂_θ(x_t, c) − w x̂_θ(x_t, ∅)]‖², w drawn for each sample.
    Stage 2: rounds of progressive distillation, whose first teacher is the student of stage 1, at a w and c drawn anew
    in every step. `steps` = `teacher_steps` leaves stage 2 out. A `stochastic` student goes two of its N steps at once,
    from t to t − 2/N, and is noised up to t − 1/N: two teacher steps of length 1/N are its pairs, at t = 1/N one. With
    `direction=encode` steps lead up from samples (given as `noise`) to their noise, by the same loss told in ε; that is
    our reading of the paper's encoder, whose details are unconfirmed.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **Distillation.presets["small"],
            "train": {"steps": 600, "batch": 128, "optimizer": {"lr": 1e-3}},
            "guidance_steps": 2000,
            "teacher_steps": 32,
            "longer": 1.0,
        }
    }

    teaching: Diffusion = Diffusion(process=CosineProcess())  # predicts v
    guidance: TeacherGuidance = TeacherGuidance(scale=1.0, highest=5.0, embedded=True)  # w from 0 to 4; SD: 2 to 14
    guidance_times: Times = Times()  # of stage 1
    train: SamplerTraining = SamplerTraining(  # of a round; the paper's lengths are not published
        steps=50_000, batch=128, optimizer=Adam(lr=1e-4), schedule=Linear()
    )
    guidance_steps: int = Field(100_000, ge=1)  # of stage 1
    teacher_steps: int = Field(1024, ge=1)  # of the student of stage 1; 512 for latents
    steps: int = Field(4, ge=1)  # of the last student
    stochastic: bool = False  # whether the last student, and so that of every round, draws anew in each step
    direction: Literal["decode", "encode"] = "decode"  # of stage 2: from noise to samples, or from samples to noise
    longer: float = Field(2.0, gt=0)  # times the length of rounds with one or two steps

    @model_validator(mode="after")
    def _halves(self) -> GuidedDistillation:
        check_halves(self.teacher_steps, self.steps)
        if not self.guidance.embedded:
            raise ValueError("the student is told its guidance: leave guidance.embedded=yes")
        if self.stochastic and (self.steps == 1 or self.direction == "encode"):
            raise ValueError("nothing is drawn anew in a single step, or to encode: leave stochastic=no")
        return self

    def drawing(self) -> Drawing:
        """Return DDIM with the last round's steps, down or up, or what goes twice as far and is noised up again."""
        if self.direction == "encode":
            return Encode(steps=self.steps)
        return Overshoot(steps=self.steps) if self.stochastic else super().drawing()

    def phases(self) -> Sequence[Phase]:
        """Return stage 1 and the rounds of stage 2."""
        first = Phase("guidance", self.guidance_steps, {"first": True, "steps": self.teacher_steps})
        rounds = super().phases() if self.steps < self.teacher_steps else ()
        return [first, *(self._round(phase) for phase in rounds)]

    def _round(self, phase: Phase) -> Phase:
        steps = round(phase.steps * (self.longer if phase.settings["steps"] <= 2 else 1))
        return dataclasses.replace(phase, steps=steps, settings={**phase.settings, "first": False})

    def build(self, lesson: Lesson) -> Any:
        """Return where the teachers of later rounds stand; networks that know no noise at t = 0 cannot encode."""
        if self.direction == "encode" and lesson.view.prediction in ("x0", "edm"):
            raise RecipeError(
                f"'{lesson.view.prediction}' holds no noise at t = 0; encode with v, velocity, trig or eps"
            )
        return super().build(lesson)

    def enter(self, lesson: Lesson, phase: Phase) -> None:
        """Make the last student the teacher; a phase has a schedule of its own length."""
        super().enter(lesson, phase)
        lesson.learner.total_steps = phase.steps

    def times(self, process: Process, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, the middle and s of each sample `[n]`; of a stochastic student two of its own steps apart."""
        if not self.stochastic:
            t, middle, s = super().times(process, moment)
            return (s, middle, t) if self.direction == "encode" else (t, middle, s)
        steps, batch = moment.phase.settings["steps"], moment.batch
        grid = process.grid(steps).flip(0)
        place = torch.randint(1, steps + 1, (batch.total,), generator=moment.run.rng("interval", moment.step))
        low = (place - 2).clamp_min(0)
        middle = (place + low + 1) // 2  # t itself at t = 1/N, for there one step of the round's teacher is at data
        return batch.mine(grid[place]), batch.mine(grid[middle]), batch.mine(grid[low])

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the error of x0: against the guided teacher first, then against two steps of the round's teacher."""
        if not moment.phase.settings["first"]:
            yield from (self.encoding(lesson, moment) if self.direction == "encode" else super().terms(lesson, moment))
            return
        batch, process = moment.batch, lesson.process
        t = batch.mine(self.guidance_times.draw(batch.total, process, moment.run.rng("time", moment.step)))
        x_t = process.diffuse(batch.x0, batch.noise, t).to(batch.x0.dtype)
        yield {"guidance": batch.mean(guidance_loss(self, lesson, moment, x_t, t, weighting=self.weighting))}

    def encoding(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield ω ‖x̂ − x̃‖² as ω σ²/α² ‖ε̂ − ε̃‖², ε̃ that of two steps up; clean samples are their own x0."""
        batch, process, view, condition = moment.batch, lesson.process, lesson.state.denoiser, moment.condition
        t, middle, s = self.times(process, moment)
        x_t = process.diffuse(batch.x0, batch.noise, t).to(batch.x0.dtype)
        with torch.no_grad():
            x_s = ddim(view, ddim(view, x_t, t, middle, condition), middle, s, condition)
            target = eps_of_jump(process, x_t, x_s, t, s)
        inside = t.clamp_min(1e-4 * process.t_max)  # ω is infinite at t = 0, its product is not
        weight = denoising_weight(self.weighting, process, inside) * torch.exp(-2 * process.log_snr(inside))
        yield {"encoding": batch.mean(weight.to(x_t.dtype) * squared(lesson.view.eps(x_t, t, condition), target))}

"""Progressive distillation: one step of the student stands for two of its teacher, again and again (2202.00512)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.artifacts.drawing import Drawing, Ode
from attar.diffusion import VE, Process, ddim, x0_of_jump
from attar.diffusion.view import Condition, View
from attar.diffusion.weights import Weighting, denoising_weight
from attar.errors import RecipeError
from attar.losses.denoising import squared
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Phase, Terms
from attar.methods.sampler.core.training import begin_again
from attar.spec import method


def two_step_target(view: View, x_t: Tensor, times: Sequence[Tensor], condition: Condition) -> Tensor:
    """Return the x0 with which one DDIM step goes where two of `view` go, from t over the middle to s; times `[n]`."""
    t, middle, s = times
    x_s = ddim(view, ddim(view, x_t, t, middle, condition), middle, s, condition)
    return x0_of_jump(view.process, x_t, x_s, t, s)


def check_halves(first: int, last: int) -> None:
    """Refuse a last number of steps that a first one, halved again and again, does not meet.

    Raises:
        ValueError: it is not met; the message names the numbers that are.
    """
    met = [first >> times for times in range(first.bit_length()) if first % 2**times == 0]
    if last not in met:
        others = ", ".join(map(str, met[1:])) or "no others"
        raise ValueError(f"{first} steps are halved to {others}: steps={last} is not met on the way")


@method
class Progressive(Distillation):
    """Halve the steps of a sampler round by round (Salimans and Ho 2022, arXiv 2202.00512).

    In a round of N steps, t = i/N on the grid: two DDIM steps of half the length by the round's teacher give x_s, and
    L = max(α²/σ², 1) · ‖x̂0(x_t, t) − x̃‖² with x̃ the x0 with which one DDIM step leads from x_t to x_s. Then the student
    is the teacher. Guidance is taken over in the first round. Take velocity or v: ε breaks down where α is near 0.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {"small": {**Distillation.presets["small"], "train": {"steps": 600}}}

    teacher_steps: int = Field(32, ge=2)  # of the first teacher; a power of 2 times `steps`
    steps: int = Field(1, ge=1)  # of the last student
    weighting: Weighting = "truncated-snr"  # of the error of x0

    @model_validator(mode="after")
    def _halves(self) -> Progressive:
        check_halves(self.teacher_steps, self.steps)
        if self.steps == self.teacher_steps:
            raise ValueError(f"nothing is halved: steps={self.steps} and teacher_steps are the same")
        return self

    def drawing(self) -> Drawing:
        """Return DDIM with the last round's steps."""
        return Ode(steps=self.steps)

    def phases(self) -> Sequence[Phase]:
        """Return a round for each halving; `train.steps` count for one."""
        rounds: list[Phase] = []
        steps = self.teacher_steps // 2
        while steps >= self.steps:
            rounds.append(Phase(f"{steps} steps", self.train.steps, {"steps": steps, "first": not rounds}))
            steps //= 2
        return rounds

    def build(self, lesson: Lesson) -> Any:
        """Return where the teachers of later rounds stand.

        Raises:
            RecipeError: rounds on EDM, whose grids of N and N/2 steps share no times.
        """
        if isinstance(lesson.process, VE) and self.steps < self.teacher_steps:
            raise RecipeError(
                "two steps become one where a grid of N steps holds every second time of one of 2 N, and those of EDM "
                "do not; take a teacher on process=flow, cosine, vp or trig"
            )
        held = lesson.student.copy()
        held.module.requires_grad_(False).eval()
        return held

    def enter(self, lesson: Lesson, phase: Phase) -> None:
        """Make the last round's student the teacher, and let the student start from it with a fresh optimizer."""
        if phase.settings["first"]:
            return
        lesson.state.module.load_state_dict(begin_again(lesson.learner))

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the error of x0 against what two steps of the round's teacher make of it."""
        batch, process = moment.batch, lesson.process
        times = self.times(process, moment)
        x_t = process.diffuse(batch.x0, batch.noise, times[0]).to(batch.x0.dtype)
        with torch.no_grad():
            if moment.phase.settings["first"]:
                target = two_step_target(self.teacher_of(lesson, moment), x_t, times, batch.condition)
            else:
                target = two_step_target(lesson.state.denoiser, x_t, times, moment.condition)
        weight = denoising_weight(self.weighting, process, times[0]).to(x_t.dtype)
        yield {"progressive": batch.mean(weight * squared(lesson.view.x0(x_t, times[0], moment.condition), target))}

    def times(self, process: Process, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, the middle and s of each sample `[n]`, on the grid of twice the round's steps."""
        grid = process.grid(2 * moment.phase.settings["steps"]).flip(0)
        rng = moment.run.rng("interval", moment.step)
        place = 2 * torch.randint(1, moment.phase.settings["steps"] + 1, (moment.batch.total,), generator=rng)
        mine = moment.batch.mine
        return mine(grid[place]), mine(grid[place - 1]), mine(grid[place - 2])

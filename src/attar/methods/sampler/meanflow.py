"""MeanFlow: learn the mean velocity between any two times, so that one step crosses all of them (2505.13447)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.artifacts.drawing import Drawing, FlowMap
from attar.diffusion import along, coefficients, spread
from attar.diffusion.tangents import Derivative
from attar.errors import RecipeError
from attar.losses.denoising import squared
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Terms
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import alike
from attar.methods.sampler.diffusion import Diffusion
from attar.nets.denoiser_specs import ResidualMLP
from attar.spec import method


def mean_velocity_target(velocity: Tensor, change: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Return v − (t − r) du/dt `[n, …]`: what u(x_t, t, r) is, where `change` is du/dt along the trajectory."""
    return velocity - spread((t - r).to(velocity.dtype), velocity) * change


@method
class MeanFlow(Distillation):
    """Learn u(x_t, t, r), the mean velocity from t to r: x_r = x_t − (t − r) u (Geng et al. 2025, arXiv 2505.13447).

    L = E ‖u_θ − sg(v − (t − r) du/dt)‖² / (‖·‖² + c)^p, squares meant over a sample's numbers, du/dt by one
    forward-mode product along (v, 1, 0). v is that of a sample and its noise, or the teacher's with guidance
    (`slope=teacher`). For a share of samples r is t.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **Distillation.presets["small"],
            "teaching": Diffusion.presets["dense"],
            "train": {"steps": 4000, "schedule": "cosine"},
            "equal": 0.25,
            "times": {
                "kind": "uniform",
                "lowest": 0.0,
            },  # the widest span, from noise to data, must be met in few steps
        }
    }
    second_time: ClassVar[bool] = True

    teaching: Diffusion = Diffusion(net=ResidualMLP(frequency=2.0))  # steep time features spoil du/dt
    slope: Literal["data", "teacher"] = "data"  # of the trajectory: training without a teacher, or distillation
    times: Times = Times(kind="logit-normal", mean=-0.4)  # of both t and r; the larger is t
    equal: float = Field(0.75, ge=0, le=1)  # share of samples whose r is t
    power: float = Field(1.0, ge=0)  # p; 1 is as good as a normalised error, 0 is the plain square
    constant: float = Field(1e-3, gt=0)  # c
    derivative: Derivative = "jvp"  # central for networks without a forward mode
    width: float = Field(1e-3, gt=0)  # of differences
    steps: int = Field(1, ge=1)  # in which samples are drawn

    @property
    def asks(self) -> bool:
        """Whether a teacher is trained where none is given."""
        return self.slope == "teacher"

    def drawing(self) -> Drawing:
        """Return jumps by the mean velocity."""
        return FlowMap(steps=self.steps)

    def build(self, lesson: Lesson) -> None:
        """Hold the student to what the method needs.

        Raises:
            RecipeError: a network that predicts something else than the velocity.
        """
        if lesson.view.prediction != "velocity":
            raise RecipeError(
                f"a mean velocity is learned by a network that predicts 'velocity', and this one predicts "
                f"'{lesson.view.prediction}'; take teaching.prediction=velocity or a teacher on process=flow"
            )

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the weighted error of the mean velocity."""
        batch, student, process = moment.batch, lesson.student, lesson.process
        t, r = (batch.mine(time).to(batch.x0.dtype) for time in self.times_of(lesson, moment))
        x_t = process.diffuse(batch.x0, batch.noise, t)
        velocity = self.velocity(lesson, moment, x_t, t)

        def function(x: Tensor, time: Tensor) -> Tensor:
            return student.mean_velocity(x, time, r, moment.condition)

        (_, change), guess = alike(
            lambda: along(
                function, x_t, t, velocity, torch.ones_like(t),
                how=self.derivative, width=self.width, highest=process.t_max,
            ),
            lambda: function(x_t, t),
        )  # fmt: skip
        error = squared(guess, mean_velocity_target(velocity, change, t, r))
        weight = (error.detach() + self.constant) ** -self.power
        yield {"mean velocity": batch.mean(weight * error)}

    def times_of(self, lesson: Lesson, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return t ≥ r of the whole batch `[total]` in float64."""
        rng, total = moment.run.rng("time", moment.step), moment.batch.total
        one, other = (self.times.draw(total, lesson.process, rng) for _ in range(2))
        t, r = torch.maximum(one, other), torch.minimum(one, other)
        return t, torch.where(torch.rand(total, generator=rng) < self.equal, t, r)

    @torch.no_grad()
    def velocity(self, lesson: Lesson, moment: Moment, x_t: Tensor, t: Tensor) -> Tensor:
        """Return dx/dt `[n, …]`: of the sample and its noise, or the teacher's."""
        if self.slope == "teacher":
            return self.teacher_of(lesson, moment).velocity(x_t, t, moment.batch.condition)
        a, b = (spread(value, x_t) for value in coefficients("velocity", lesson.process, t))
        return (a * moment.batch.x0 + b * moment.batch.noise).to(x_t.dtype)

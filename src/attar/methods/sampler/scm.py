"""sCM: consistency in continuous time on TrigFlow, where the neighbour is infinitely near (arXiv 2410.11081)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.artifacts.drawing import Drawing, Multistep
from attar.data import Samples
from attar.diffusion import TrigFlow, along, normalised_tangent, scm_tangent, spread, transfer, transfer_time
from attar.diffusion.tangents import Derivative
from attar.diffusion.view import Condition, View
from attar.losses.denoising import squared
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Terms
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import SamplerTraining, alike
from attar.methods.sampler.diffusion import Diffusion
from attar.nets.denoiser_specs import ResidualMLP
from attar.nets.denoisers import TimeFeatures, ZeroLinear
from attar.run import Adam, Learner, Run
from attar.spec import method


class LogVariance(nn.Module):
    """w(t) of the adaptive weight e^w · L − w: how hard a time is, zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(TimeFeatures(16.0), ZeroLinear(TimeFeatures.size, 1))

    def forward(self, t: Tensor) -> Tensor:
        """Return w `[n]` of times `[n]`."""
        out: Tensor = self.layers(t.float())[:, 0]
        return out


@dataclass(eq=False)
class Continuous:
    """What the tangent is taken on: TrigFlow, its highest time, and the learner of the adaptive weight, if any."""

    process: TrigFlow
    highest: float
    weight: Learner | None
    hardness: Tensor | None = None  # [2, n]: times and errors of the last step


def network_output(view: View, sigma_data: float, condition: Condition) -> Any:
    """Return F(x / σ_d, t) of a view on TrigFlow, as a function of both."""

    def output(x: Tensor, t: Tensor) -> Tensor:
        return view.predict(x * sigma_data, t, condition, kind="trig")

    return output


@method
class ContinuousConsistency(Distillation):
    """Make a student's consistency function constant along trajectories (Lu and Song 2024, arXiv 2410.11081).

    With F the network on TrigFlow and x_t = cos t x0 + sin t z, L = e^{w(t)} · mean (F_θ − sg(F_θ + g))² − w(t); g is
    cos t times the derivative of f = cos t x − sin t σ_d F along dx/dt, normalised. dx/dt is the teacher's
    (distillation) or −sin t x0 + cos t z (training). A teacher on any process is seen on TrigFlow without loss. The
    derivative in t must not be steep: teachers whose `net.frequency` is 16 teach far worse here than those with 2.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "teaching": Diffusion.presets["dense"],
            "train": {"steps": 2000, "optimizer": {"lr": 1e-3, "beta2": 0.99}, "schedule": "cosine"},
            "warmup": 500,
        }
    }

    teaching: Diffusion = Diffusion(net=ResidualMLP(frequency=2.0))
    train: SamplerTraining = SamplerTraining(steps=40_000, optimizer=Adam(lr=1e-3, beta2=0.99))  # steps, rate: ours
    slope: Literal["teacher", "data"] = "teacher"  # of the trajectory: distillation, or training without a teacher
    times: Times = Times(kind="log-normal", mean=-1.0, std=1.4)  # of σ/α, for data of the deviation below
    times_for: float = Field(0.5, gt=0)  # σ_d that `times` are told for; with other data the angles t stay the same
    sigma_data: float | None = Field(None, gt=0)  # σ_d; none: the data's
    derivative: Derivative = "jvp"  # central for networks without a forward mode
    width: float = Field(1e-3, gt=0)  # of differences
    warmup: int = Field(10_000, ge=0)  # steps over which the unstable part of the tangent comes in
    tangent: Literal["normalised", "clipped"] = "normalised"  # g / (‖g‖ + constant), or each number to ±1
    constant: float = Field(0.1, gt=0)
    adaptive: bool = True  # learn w(t); otherwise 0
    steps: int = Field(1, ge=1)  # in which samples are drawn
    begins_at: float | None = Field(None, gt=0)  # angle t where drawing begins; none: the noisiest of the teacher
    again_at: tuple[float, ...] = ()  # falling angles of the 2nd, 3rd … step; none: the grid of the teacher's process

    @property
    def asks(self) -> bool:
        """Whether a teacher is trained where none is given."""
        return self.slope == "teacher"

    def drawing(self) -> Drawing:
        """Return the consistency sampler."""
        return Multistep(steps=self.steps)

    def begin(self, run: Run, data: Samples, given: GivenTeacher | None, **more: Any) -> Lesson:
        """Return the lesson as it starts; the angles at which samples are drawn are told as times of its process."""
        lesson = super().begin(run, data, given, **more)
        if self.begins_at is not None or self.again_at:
            angles = torch.tensor([self.begins_at or math.pi / 2, *self.again_at], dtype=torch.float64)
            times = transfer_time(self.trigonometric(lesson), lesson.process, angles).clamp_max(lesson.process.t_max)
            highest, *again = times.tolist()
            drawing = Multistep(steps=self.steps, highest=highest, times=tuple(again))
            lesson.student = lesson.student.with_module(lesson.student.module, drawing=drawing)
        return lesson

    def trigonometric(self, lesson: Lesson) -> TrigFlow:
        """Return TrigFlow for this data."""
        return TrigFlow(sigma_data=self.sigma_data or lesson.data.sigma_data)

    def build(self, lesson: Lesson) -> Continuous:
        """Return TrigFlow for this data, and the learner of the weight."""
        process = self.trigonometric(lesson)
        highest = transfer_time(lesson.process, process, torch.tensor(lesson.process.t_max, dtype=torch.float64))
        weight = (
            lesson.run.learner("weight", LogVariance().to(lesson.run.device), Adam(lr=1e-3)) if self.adaptive else None
        )
        return Continuous(process, float(highest), weight)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the error against the network's own output moved by the tangent; broken samples count as 0."""
        state: Continuous = lesson.state
        batch, process, sigma_data = moment.batch, state.process, state.process.sigma_data
        told = TrigFlow(sigma_data=self.times_for)
        t = batch.mine(self.times.draw(batch.total, told, moment.run.rng("time", moment.step)))
        t = t.clamp_max(state.highest).to(batch.x0.dtype)
        x_t = process.diffuse(batch.x0, batch.noise, t)
        slope = self.slope_of(lesson, moment, x_t, t)
        function = network_output(transfer(lesson.view, process), sigma_data, moment.condition)
        rate = torch.cos(t) * torch.sin(t)
        (output, derivative), guess = alike(
            lambda: along(
                function, x_t / sigma_data, t, spread(rate, x_t) * slope / sigma_data, rate,
                how=self.derivative, width=self.width, highest=state.highest,
            ),
            lambda: function(x_t / sigma_data, t),
        )  # fmt: skip
        share = min(1.0, moment.step / self.warmup) if self.warmup else 1.0
        raw = scm_tangent(output, derivative, x_t, t, slope, sigma_data=sigma_data, warmup=share)
        tangent, finite = self.bounded(raw)
        if not bool(finite.all()):
            moment.run.log({"lost samples": (~finite).sum()})
        kept, nothing = spread(finite, guess), torch.zeros_like(output)
        error = squared(torch.where(kept, guess, nothing), torch.where(kept, output + tangent, nothing))
        error = self.prior(t, sigma_data) * error
        state.hardness = torch.stack([t, error.detach()])
        w = state.weight.target(t).detach() if state.weight is not None else torch.zeros_like(t)  # type: ignore[operator]
        yield {"consistency": batch.mean(w.exp() * error)}

    def prior(self, t: Tensor, sigma_data: float) -> Tensor:
        """Return a weight `[n]` that errors have beside the learned one."""
        return torch.ones_like(t)

    @torch.no_grad()
    def slope_of(self, lesson: Lesson, moment: Moment, x_t: Tensor, t: Tensor) -> Tensor:
        """Return dx/dt on TrigFlow `[n, …]`."""
        if self.slope == "teacher":
            teacher = transfer(self.teacher_of(lesson, moment), lesson.state.process)
            return teacher.velocity(x_t, t, moment.batch.condition)
        cos, sin = spread(torch.cos(t), x_t), spread(torch.sin(t), x_t)
        return cos * lesson.state.process.sigma_data * moment.batch.noise - sin * moment.batch.x0

    def bounded(self, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tangent, normalised or clipped, and which samples `[n]` were finite."""
        if self.tangent == "normalised":
            return normalised_tangent(tangent, self.constant)
        finite = tangent.flatten(1).isfinite().all(1)
        return torch.where(spread(finite, tangent), tangent.clamp(-1, 1), torch.zeros_like(tangent)), finite

    def after(self, lesson: Lesson, moment: Moment) -> None:
        """Fit w(t) to the errors of the step: the minimum of e^w E − w is w = −log E."""
        state: Continuous = lesson.state
        if state.weight is not None and state.hardness is not None:
            t, error = state.hardness
            w = state.weight.target(t)  # type: ignore[operator]
            state.weight.update({"weight": moment.batch.mean(w.exp() * error - w)})

"""BOOT: a one-step student that pulls itself from the noisy end of trajectories to the clean one, without any data."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.artifacts.drawing import SOLVERS, Drawing, Signal, Solver
from attar.diffusion import start
from attar.diffusion.process import Process
from attar.diffusion.signal import last_time, share_kept, signal, signal_below
from attar.diffusion.specs import CosineProcess
from attar.errors import RecipeError
from attar.losses.denoising import Distance, sample_distance
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Terms
from attar.methods.sampler.core.times import on_levels
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.diffusion import Diffusion
from attar.run import AdamW
from attar.spec import method


@method
class Bootstrapping(Distillation):
    """Learn the signal y_t = (x_t − σ_t ε) / α_t of every trajectory from its noise ε alone (Gu et al. 2023, BOOT).

    g(ε, t) is y_t, and g(ε, 0) a sample. L = E w ‖g(ε, s) − sg ŷ_s‖² + β E ‖g(ε, 1) − x̂0(ε, 1)‖², s = t − δ, where the
    (guided) teacher leads the student's own state x̂_t = α_t g(ε, t) + σ_t ε on to s: with a DDIM step
    ŷ_s = (1 − ρ) x̂0(x̂_t, t) + ρ g(ε, t), ρ = σ_s α_t / (α_s σ_t). No data are read, only the names of conditions. The
    student is the teacher's network, which sees pure noise and is told t. arXiv 2306.05544.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **Distillation.presets["small"],
            "train": {"steps": 4000, "batch": 128, "optimizer": {"lr": 1e-3}},
        }
    }

    teaching: Diffusion = Diffusion(process=CosineProcess())
    train: SamplerTraining = SamplerTraining(
        steps=50_000, batch=1024, optimizer=AdamW(lr=2e-5)
    )  # ours, as δ, β and w: the paper's are not known here
    interval: float = Field(0.02, gt=0, lt=1)  # δ, a share of t_max; small ones compound, large ones are coarse
    highest: float = Field(1.0, gt=0, le=1)  # noisiest time, a share of t_max; 0.99 for teachers that predict ε
    solver: Solver = "ddim"  # of the teacher's way from t to s
    substeps: int = Field(1, ge=1)  # of the solver; more, or heun, lessen its error
    weight: Literal["rate", "interval", "none"] = "rate"  # w: 1 / (1 − ρ)², which makes residues alike, or 1 / (t − s)²
    boundary: float = Field(1.0, ge=0)  # β; a student that is not its teacher's network needs it
    distance: Distance = "l2"

    def drawing(self) -> Drawing:
        """Return one look at the noise."""
        return Signal()

    def build(self, lesson: Lesson) -> None:
        """Hold the interval to the process.

        Raises:
            RecipeError: no step of the interval lies below the noisiest time.
        """
        if self.interval >= self.highest:
            raise RecipeError(f"a step of {self.interval:g} does not fit below {self.highest:g}; lessen interval")

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the error of a bootstrapped step, and that at the noisy end."""
        batch, process, noise = moment.batch, lesson.process, moment.batch.noise
        t, s = (batch.mine(time) for time in self.times(process, moment))
        target = self.target(lesson, moment, t, s)
        errors = sample_distance(signal(lesson.view, noise, s, moment.condition), target, self.distance)
        yield {"bootstrapping": batch.mean(self.weights(process, t, s).to(errors.dtype) * errors)}
        if not self.boundary:
            return
        end = torch.full_like(t, self.highest * process.t_max)
        with torch.no_grad():
            first = self.teacher_of(lesson, moment).x0(start(process, end[0], noise), end, batch.condition)
        errors = sample_distance(signal(lesson.view, noise, end, moment.condition), first, self.distance)
        yield {"boundary": self.boundary * batch.mean(errors)}

    def times(self, process: Process, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return t > s of the whole batch `[total]`, δ apart."""
        rng = moment.run.rng("time", moment.step)
        share = torch.rand(moment.batch.total, generator=rng, dtype=torch.float64)
        t = on_levels(process, (self.interval + share * (self.highest - self.interval)) * process.t_max)
        return t, on_levels(process, (t - self.interval * process.t_max).clamp_min(last_time(process)))

    @torch.no_grad()
    def target(self, lesson: Lesson, moment: Moment, t: Tensor, s: Tensor) -> Tensor:
        """Return ŷ_s `[n, …]`, where the teacher leads the student's own state."""
        y_t = signal(lesson.view, moment.batch.noise, t, moment.condition)
        ways = torch.linspace(0, 1, self.substeps + 1, dtype=torch.float64, device=t.device)
        return signal_below(
            self.teacher_of(lesson, moment), y_t, moment.batch.noise, torch.lerp(t, s, ways[:, None]),
            moment.batch.condition, step=SOLVERS[self.solver], draw=moment.drawing("solver"),
        )  # fmt: skip

    def weights(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        """Return the weight of each sample `[n]`."""
        if self.weight == "rate":
            return (1 - share_kept(process, t, s)) ** -2
        return (t - s) ** -2 if self.weight == "interval" else torch.ones_like(t)

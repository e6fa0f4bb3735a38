"""SlimFlow: a smaller one-step sampler, by reflow from annealed noise and distillation that its own flow guides."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.data import Samples
from attar.diffusion.view import Condition, View
from attar.losses.denoising import sample_distance
from attar.methods.sampler.core.coupling import Coupling
from attar.methods.sampler.core.distillation import Lesson, Moment, Phase, Terms
from attar.methods.sampler.core.perception import Perceptual, Sight
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.rectified_flow import RectifiedFlow, on_flow, one_step
from attar.nets.denoiser_specs import DenoiserNet, UNet
from attar.run import Adam, Linear, Run
from attar.spec import method


def annealed(noise: Tensor, fresh: Tensor, beta: float) -> Tensor:
    """Return √(1 − β²) ε + β ε' `[n, …]`, unit noise for every β in [0, 1]."""
    return math.sqrt(1 - beta * beta) * noise + beta * fresh


@torch.no_grad()
def guided_target(flow: View, first: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Return where two Euler steps lead unit noise `[n, …]`, from 1 to t `[n]` and to 0; `first` is the first slope."""
    share = t.to(noise.dtype).reshape(-1, *[1] * (noise.dim() - 1))
    x_t = noise - (1 - share) * first
    return x_t - share * flow.velocity(x_t, t, condition)


@method
class SlimFlow(RectifiedFlow):
    """Reflow a large teacher into a small flow, and that into one step (Zhu et al. 2024, arXiv 2407.12718).

    The student is a network of its own with fresh weights. Annealing reflow: the noise of a pair (ε, x0) is
    √(1 − β²) ε + β ε' with ε' fresh and β falling from 1, flow matching on the teacher's samples, to 0, reflow.
    Distillation at t = 1: D(ε − v(ε, 1), x0) on pairs of the small flow, and the same on fresh noise, where the target
    is two Euler steps of the small flow that meet at a drawn time (flow-guided distillation).
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **RectifiedFlow.presets["small"],
            "net": {"kind": "residual-mlp", "width": 96, "blocks": 2},
            "coupling": {"count": 4096, "steps": 16},
            "train": {"steps": 4000, "batch": 128, "optimizer": {"lr": 1e-3}, "schedule": {"kind": "constant"}},
            "flip": False,  # mirrored digits are none
            "distil_steps": 1500,
            "compared": "pixels",
        }
    }

    net: DenoiserNet | None = UNet(
        width=96, multipliers=(1, 2, 2), blocks=2, dropout=0.15
    )  # smaller than the teacher's
    coupling: Coupling = Coupling(count=50_000, solver="heun", steps=32)  # RK45 in the paper
    train: SamplerTraining = SamplerTraining(
        steps=500_000, batch=128, optimizer=Adam(lr=2e-4), schedule=Linear(warmup=5000, final=1.0)
    )  # steps are ours: annealing ends at the paper's 300,000
    annealing: float = Field(0.6, ge=0, le=1)  # share of reflow's steps after which β is 0; 0: plain reflow
    curve: Literal["linear", "cosine"] = "linear"  # of β
    flip: bool = True  # mirror noise and sample of half the pairs together, where samples are maps
    distil_steps: int = Field(200_000, ge=0)  # ours
    compared: Literal["perceptual", "pixels", "both"] = "perceptual"  # D; pixels: `distance`
    perceptual: Perceptual = Perceptual()  # where the paper takes LPIPS
    guiding: float = Field(1.0, ge=0)  # weight of flow-guided distillation; 0: stored pairs alone
    first: Literal["student", "flow"] = "student"  # whose slope leads to the meeting time: as released, or as written
    meeting: Times = Times(lowest=0.2, highest=0.8)

    def begin(self, run: Run, data: Samples, given: GivenTeacher | None, **more: Any) -> Lesson:
        """Return a student that gives the velocity of flow matching, whatever its teacher gives."""
        return on_flow(super().begin(run, data, given, sight=Sight.of(data, given), **more))

    def build(self, lesson: Lesson) -> None:
        """Hold the data to what distillation needs, before reflow.

        Raises:
            RecipeError: samples that are no pictures with labels, where they are to be compared perceptually.
        """
        super().build(lesson)
        if self.distil_steps and self.compared != "pixels":
            self.perceptual.check(lesson, "compared=pixels")

    def enter(self, lesson: Lesson, phase: Phase) -> None:
        """Store a round's pairs, and for distillation what compares pictures."""
        super().enter(lesson, phase)
        if phase.settings.get("ends") and self.compared != "pixels":
            lesson.state.perception = self.perceptual.build(lesson)

    def moment(self, lesson: Lesson, phase: Phase, step: int) -> Moment:
        """Draw stored pairs, some mirrored; the teacher's with annealed noise."""
        moment = super().moment(lesson, phase, step)
        batch = moment.batch
        x0, noise = batch.x0, batch.noise
        if self.flip and x0.dim() == 4:
            turned = batch.mine(torch.rand(batch.total, generator=lesson.run.rng("flip", step)) < 0.5)
            rows = turned.reshape(-1, 1, 1, 1)
            x0, noise = (torch.where(rows, part.flip(-1), part) for part in (x0, noise))
        if phase.settings["round"] == 0 and not phase.settings.get("ends"):
            noise = annealed(noise, moment.noise("annealing", noise), self.beta(step, phase.steps))
        return dataclasses.replace(moment, batch=dataclasses.replace(batch, x0=x0, noise=noise))

    def beta(self, step: int, steps: int) -> float:
        """Return the share of fresh noise at a step of reflow."""
        if not self.annealing:
            return 0.0
        gone = min(1.0, step / (self.annealing * steps))
        return 1 - gone if self.curve == "linear" else math.cos(math.pi / 2 * gone)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the error of the velocity; in distillation distances on pairs, and on fresh noise."""
        if not moment.phase.settings.get("ends"):
            yield from super().terms(lesson, moment)
            return
        batch, told = moment.batch, moment.condition
        yield {"pairs": batch.mean(self.apart(lesson, one_step(lesson.view, batch.noise, told), batch.x0))}
        if not self.guiding or lesson.state.flow is None:  # with rounds=0 there is no flow of its own
            return
        noise = moment.noise("guided noise", batch.noise)
        t = batch.mine(self.meeting.draw(batch.total, lesson.process, moment.run.rng("meeting", moment.step)))
        flow: View = lesson.state.flow.denoiser
        made = one_step(lesson.view, noise, told)
        slope = noise - made.detach() if self.first == "student" else noise - one_step(flow, noise, told)
        target = guided_target(flow, slope, noise, t, told)
        yield {"guided": self.guiding * batch.mean(self.apart(lesson, made, target))}

    def apart(self, lesson: Lesson, made: Tensor, wanted: Tensor) -> Tensor:
        """Return D between samples `[n, …]`: `[n]`."""
        found = torch.zeros(len(made), device=made.device)
        if self.compared != "perceptual":
            found = found + sample_distance(made, wanted, self.distance)
        return found if self.compared == "pixels" else found + lesson.state.perception(made, wanted)

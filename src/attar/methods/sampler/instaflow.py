"""InstaFlow: straighten a guided diffusion model by text-conditioned reflow, then distil it into one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from attar.artifacts.drawing import Drawing, Ode
from attar.data import Samples
from attar.diffusion.specs import DiscreteProcess
from attar.methods.sampler.core.coupling import Coupling
from attar.methods.sampler.core.distillation import Lesson, Moment, Phase, Terms
from attar.methods.sampler.core.perception import Perceptual, Sight
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.diffusion import Diffusion
from attar.methods.sampler.rectified_flow import RectifiedFlow, on_flow, one_step
from attar.run import AdamW, Run
from attar.spec import method


@method
class InstaFlow(RectifiedFlow):
    """Reflow a guided teacher, then distil the straight flow into one step (Liu et al. 2023, arXiv 2309.06380).

    The student begins with the teacher's weights, and what they give is read as the velocity on x_t = (1 − t) x0 + t ε,
    whatever it was before. Reflow on the guided teacher's pairs (ε, condition, x0), a share of conditions dropped:
    L = E ‖v(x_t, t, c) − (ε − x0)‖². Then pairs of its own, by Euler with g of v_u + g (v_c − v_u), and distillation at
    t = 1 alone: squared errors of ε − v(ε, 1, c), and at last a perceptual distance of (decoded) pictures, by a
    classifier of the data where the paper takes LPIPS. Other samples do without (`perceptual_steps=0`). The paper's
    larger student, two U-Nets in a row, is not built.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "teaching": RectifiedFlow.presets["small"]["teaching"] | {"process": "flow"},
            "guidance": {"scale": 2.0},
            "coupling": {"count": 4096, "steps": 12},
            "own_coupling": {"count": 4096, "steps": 12},
            "train": {"steps": 1500, "batch": 128, "optimizer": {"lr": 1e-3}},
            "distil_steps": 1000,
            "perceptual_steps": 500,
            "perceptual": {"net": {"depth": 2, "width": 16}},
        }
    }

    teaching: Diffusion = Diffusion(process=DiscreteProcess(betas="scaled-linear"))
    guidance: TeacherGuidance = TeacherGuidance(scale=6.0)  # about what the paper's pairs were drawn with
    coupling: Coupling = Coupling(count=1_000_000, solver="dpmpp-2m", steps=25, half=True)  # their number is ours
    own_coupling: Coupling | None = Coupling(count=1_000_000, solver="euler", steps=25, half=True)
    own_guidance: float = Field(1.5, ge=0)  # the paper's α
    drop: float = Field(0.1, ge=0, lt=1)  # of conditions, in reflow
    train: SamplerTraining = SamplerTraining(
        steps=25_000, batch=1024, optimizer=AdamW(lr=1e-5)
    )  # the rate is ours; 70,000 more of batch 64 stand before these in the paper
    distil_steps: int = Field(21_500, ge=0)  # of squared errors
    perceptual_steps: int = Field(18_000, ge=0)  # of the perceptual distance, behind them; 0 for none
    perceptual: Perceptual = Perceptual()

    def drawing(self) -> Drawing:
        """Return one Euler step, or the paper's 25 of a flow that is straightened alone."""
        distilled = self.distil_steps or self.perceptual_steps
        return Ode(solver="euler", steps=self.steps or (1 if distilled else 25))

    def phases(self) -> Sequence[Phase]:
        """Return reflow, distillation by squared errors, and by the perceptual distance."""
        fresh = self.perceptual_steps and not self.distil_steps  # whether its pairs are still to be drawn
        settings = {"round": self.rounds, "ends": True, "perceptual": True, "goes on": not fresh}
        last = [Phase("perceive", self.perceptual_steps, settings)] if self.perceptual_steps else []
        return [*super().phases(), *last]

    def begin(self, run: Run, data: Samples, given: GivenTeacher | None, **more: Any) -> Lesson:
        """Return a student that is the teacher's network, read as a velocity; a flow that is straightened alone draws
        with guidance."""
        distilled = self.distil_steps or self.perceptual_steps
        lesson = super().begin(run, data, given, sight=Sight.of(data, given), **more)
        return on_flow(lesson, **({} if distilled else {"guidance": self.own_guidance, "guided": "two-calls"}))

    def build(self, lesson: Lesson) -> None:
        """Hold the data to what the last phase needs, before the first.

        Raises:
            RecipeError: samples that are no pictures with labels, where there is a perceptual phase.
        """
        super().build(lesson)
        if self.perceptual_steps:
            self.perceptual.check(lesson, "perceptual_steps=0")

    def enter(self, lesson: Lesson, phase: Phase) -> None:
        """Store a round's pairs; the perceptual phase keeps those of distillation, and its student as it is."""
        if phase.settings.get("goes on"):
            lesson.learner.total_steps = self.distil_steps + phase.steps
        else:
            super().enter(lesson, phase)
        if phase.name == "distil":  # one schedule for both distances
            lesson.learner.total_steps = phase.steps + self.perceptual_steps
        if phase.settings.get("perceptual"):
            lesson.state.perception = self.perceptual.build(lesson)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the error of the velocity, or the perceptual distance of one step's sample."""
        if not moment.phase.settings.get("perceptual"):
            yield from super().terms(lesson, moment)
            return
        batch = moment.batch
        made = one_step(lesson.view, batch.noise, moment.condition)
        yield {"perceptual": batch.mean(lesson.state.perception(made, batch.x0))}

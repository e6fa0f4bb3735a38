"""LoRA-enhanced distillation: low-rank updates that make one pass of a network its own guided prediction."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from attar.artifacts.drawing import Drawing, Ode, Solver
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Terms
from attar.methods.sampler.core.guided import guidance_loss
from attar.methods.sampler.core.teacher import TeacherGuidance
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import SamplerTraining
from attar.nets.adapter_specs import LoRA
from attar.run import AdamW
from attar.spec import method


@method
class LoRADistillation(Distillation):
    """Take guidance over into low-rank updates; the teacher is the same network without them (arXiv 2312.06899, 2023).

    L = E ‖ε_{θ+BA}(x_t, t, c) − [ε_θ(x_t, t, ∅) + g (ε_θ(x_t, t, c) − ε_θ(x_t, t, ∅))]‖², for one g. Nothing but the
    updates is trained and stored. Samples are drawn in as many steps as before, with half the evaluations.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "teaching": Distillation.presets["small"]["teaching"],
            "lora": {"rank": 8, "layers": "all"},
            "guidance": {"scale": 3.0},
            "train": {"steps": 2000, "batch": 128, "optimizer": {"lr": 2e-3}},
        }
    }

    lora: LoRA | None = LoRA()  # rank 4 in attention, as diffusers has it; none: all weights of a copy are trained
    guidance: TeacherGuidance = TeacherGuidance(scale=7.5)
    times: Times = Times()
    train: SamplerTraining = SamplerTraining(  # the official script's: one sample a step, 50,000 pictures
        steps=50_000, batch=1, optimizer=AdamW(lr=5e-6), average=0.0
    )
    solver: Solver = "dpmpp-2m"  # of samples that are drawn when all is done
    steps: int = Field(25, ge=1)

    def drawing(self) -> Drawing:
        """Return the solver with its steps."""
        return Ode(solver=self.solver, steps=self.steps)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the error against the guided prediction at a noised sample of the data."""
        batch, process = moment.batch, lesson.process
        t = batch.mine(self.times.draw(batch.total, process, moment.run.rng("time", moment.step)))
        x_t = process.diffuse(batch.x0, batch.noise, t).to(batch.x0.dtype)
        yield {"guidance": batch.mean(guidance_loss(self, lesson, moment, x_t, t))}

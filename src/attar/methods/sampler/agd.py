"""Adapter guidance distillation: small networks beside attention learn guidance on a guided teacher's trajectories."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.artifacts.couplings import Couplings
from attar.artifacts.drawing import Drawing, Ode, Solver
from attar.diffusion import coefficients, spread, x0_of_jump
from attar.losses.denoising import squared
from attar.methods.sampler.core.coupling import Coupling, chosen_rows, stored
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Phase, Terms
from attar.methods.sampler.core.guided import guidance_loss
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance
from attar.methods.sampler.core.training import SamplerTraining
from attar.nets.adapter_specs import GuidanceAdapters
from attar.run import AdamW, Cosine
from attar.spec import method


@method
class AdapterGuidance(Distillation):
    """Distil guidance into adapters of a frozen network (Jensen and Sadat 2025, arXiv 2503.07274).

    A stage stores states x_t of guided DDIM trajectories, each with a g of its own. L = ‖f_{θ+A}(x_t, t, c, w) −
    f_θ^g(x_t, t, c)‖², whose target is what led from x_t to the next state: no teacher is asked. Nothing but the
    adapters is trained and stored; w = g − 1 is told to them alone.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "teaching": Distillation.presets["small"]["teaching"],
            "trajectories": {"count": 1024, "steps": 32},
            "adapters": {"hidden": 32},
            "train": {"steps": 2000, "optimizer": {"lr": 1e-3}},
        }
    }

    adapters: GuidanceAdapters = GuidanceAdapters()
    guidance: TeacherGuidance = TeacherGuidance(scale=1.0, highest=6.0, embedded=True)  # of DiT; 12 for SD
    states: Literal["trajectories", "data"] = "trajectories"  # data: as many noised samples; the teacher is asked
    trajectories: Coupling = Coupling(count=4000, solver="ddim", steps=1000, kept=1)  # 4 a class of ImageNet
    train: SamplerTraining = SamplerTraining(
        steps=5000, batch=64, optimizer=AdamW(lr=1e-4, weight_decay=0.0), schedule=Cosine(warmup=500, final=1e-4)
    )
    solver: Solver = "ddim"  # of samples that are drawn when all is done
    steps: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> AdapterGuidance:
        if self.lora is not None or self.net is not None:
            raise ValueError("the teacher's network gets adapters here; leave lora and net out")
        if not self.guidance.embedded:
            raise ValueError("the adapters are told guidance: leave guidance.embedded=yes")
        if self.trajectories.solver != "ddim" or self.trajectories.kept != 1:
            raise ValueError("the guided prediction is read off DDIM steps: trajectories.solver=ddim, .kept=1")
        if self.trajectories.half:
            raise ValueError("the guided prediction is a small difference of states: leave trajectories.half=no")
        return self

    @property
    def adapter(self) -> GuidanceAdapters:
        """The adapters."""
        return self.adapters

    def drawing(self) -> Drawing:
        """Return the solver with its steps."""
        return Ode(solver=self.solver, steps=self.steps)

    def build(self, lesson: Lesson) -> Couplings:
        """Return the stored trajectories, or as many noised samples of the data."""
        assert lesson.teacher is not None
        assert lesson.teacher.sampler is not None
        wanted = dataclasses.replace(self.trajectories, guidance=self.guidance, teaching=self.teaching)
        if self.states == "trajectories":
            given = GivenTeacher(lesson.teacher.sampler)
            made: Couplings = lesson.run.stage("trajectories", wanted, data=lesson.data, teacher=given)
            return made
        rng, count = lesson.run.rng("states"), wanted.count
        x0, which = lesson.data.draw_named(count, rng)
        scales = torch.as_tensor(wanted.guidance.draw(count, rng))
        return Couplings(torch.randn(x0.shape, generator=rng), x0, which, scales)

    def moment(self, lesson: Lesson, phase: Phase, step: int) -> Moment:
        """Draw stored trajectories, with their conditions and guidance."""
        return stored(lesson, lesson.state, self.train.batch, phase, step, embedded=True)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the error of the student's own prediction at a state."""
        batch, process = moment.batch, lesson.process
        times = process.grid(self.trajectories.steps).to(batch.x0.device)
        rng = moment.run.rng("state", moment.step)
        place = batch.mine(torch.randint(self.trajectories.steps, (batch.total,), generator=rng))
        t, s = times[place], times[place + 1]
        if self.states == "data":
            x_t = process.diffuse(batch.x0, batch.noise, t).to(batch.x0.dtype)
            yield {"guidance": batch.mean(guidance_loss(self, lesson, moment, x_t, t))}
            return
        x_t, x_s = self.states_of(lesson, moment, place)
        x0 = x0_of_jump(process, x_t, x_s, t, s)
        alpha, sigma = process.levels(t, x_t)
        eps = (x_t - alpha * x0) / sigma
        a, b = (spread(value, x_t) for value in coefficients(lesson.view.prediction, process, t))
        target = (a * x0 + b * eps).to(x_t.dtype)
        yield {"guidance": batch.mean(squared(lesson.view.output(x_t, t, moment.condition), target))}

    def states_of(self, lesson: Lesson, moment: Moment, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states `[n, …]` at places `[n]` of the grid, and those behind them."""
        pairs: Couplings = lesson.state
        assert pairs.path is not None
        rows = chosen_rows(lesson.run, pairs, moment.batch.total, moment.step)
        place, last = place.cpu(), pairs.path.shape[1] - 1
        state, behind = pairs.path[rows, place], pairs.path[rows, (place + 1).clamp_max(last)]
        behind[place == last] = pairs.ends[rows[place == last]]
        return state.to(lesson.run.device), behind.to(lesson.run.device)

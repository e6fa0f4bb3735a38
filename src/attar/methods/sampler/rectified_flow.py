"""Rectified flow: train again on the teacher's own pairs, and its trajectories become straight (arXiv 2209.03003)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attar.artifacts.couplings import Couplings
from attar.artifacts.drawing import Drawing, Ode
from attar.artifacts.sampler import Sampler
from attar.diffusion import Flow
from attar.diffusion.specs import FlowProcess
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError
from attar.losses.denoising import Distance, sample_distance
from attar.methods.sampler.core.coupling import Coupling, stored
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Phase, Terms
from attar.methods.sampler.core.perception import Perception
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import begin_again, trained
from attar.spec import method


@dataclass(eq=False)
class Round:
    """A round's pairs, and whose they are."""

    pairs: Couplings
    flow: Sampler | None  # the student as the round began, frozen; none where the pairs are the teacher's
    perception: Perception | None = None  # where a method compares pictures by it


@method
class RectifiedFlow(Distillation):
    """Reflow a teacher, and distil it into one step (Liu et al. 2022, arXiv 2209.03003).

    Pairs of noise ε and endpoint x0 of the teacher's ODE are stored once a round. Reflow: L = E ‖v(x_t, t) − (ε − x0)‖²
    on x_t = (1 − t) x0 + t ε, which straightens trajectories. Distillation: the same at t = 1 alone, where the distance
    is between ε − v and x0. The student predicts the velocity of flow matching, and its pairs keep their coupling.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {
        "small": {**Distillation.presets["small"], "coupling": {"count": 4096}, "distil_steps": 1000}
    }

    coupling: Coupling = Coupling()  # how the teacher's pairs are drawn, with the guidance of `guidance`
    own_coupling: Coupling | None = None  # how the student's own are drawn, from the second round on; none: likewise
    own_guidance: float = Field(1.0, ge=0)  # g of u + g (c − u) of those; other than 1 wants `drop`
    rounds: int = Field(1, ge=0)  # of reflow, of `train.steps` each; 0: distil the teacher's own pairs
    times: Times = Times(lowest=0.0)  # of reflow
    distil_steps: int = Field(0, ge=0)  # steps of distillation into one step behind the last round
    distance: Distance = "l2"
    steps: int | None = Field(None, ge=1)  # in which samples are drawn; none: one where it is distilled, else four

    def drawing(self) -> Drawing:
        """Return Euler's method, which a straight trajectory needs no steps for."""
        return Ode(solver="euler", steps=self.steps or (1 if self.distil_steps else 4))

    def phases(self) -> Sequence[Phase]:
        """Return the rounds of reflow, and distillation."""
        rounds = [Phase(f"reflow {number}", self.train.steps, {"round": number}) for number in range(self.rounds)]
        distilled = [Phase("distil", self.distil_steps, {"round": self.rounds, "ends": True})]
        return [*rounds, *(distilled if self.distil_steps else [])]

    def build(self, lesson: Lesson) -> Any:
        """Hold the student to flow matching.

        Raises:
            RecipeError: another process or prediction, or guidance that is told where the student makes pairs.
        """
        if self.guidance.embedded and any(phase.settings["round"] for phase in self.phases()):
            raise RecipeError("a student that is told its guidance makes no pairs of its own; take rounds=0")
        if not isinstance(lesson.process, Flow) or lesson.view.prediction != "velocity":
            raise RecipeError(
                f"trajectories become straight where x_t = (1 − t) x0 + t ε, and this student predicts "
                f"'{lesson.view.prediction}' on {type(lesson.process).__name__}; take a teacher on process=flow"
            )
        return None

    def enter(self, lesson: Lesson, phase: Phase) -> None:
        """Store the pairs of a round, from noise of its own; from the second on the student makes them.

        It begins anew from itself then, and a phase has a schedule of its own length.
        """
        number = phase.settings["round"]
        assert lesson.teacher is not None
        made: Sampler | None = None
        given = GivenTeacher("exact" if lesson.teacher.sampler is None else lesson.teacher.sampler)
        coupling, guidance = self.coupling, self.guidance
        if number:
            begin_again(lesson.learner)
            told = {"guidance": self.own_guidance, "guided": "two-calls"}
            made = frozen(lesson.student.with_module(trained(lesson.learner), **told).copy())
            given, guidance = GivenTeacher(made), TeacherGuidance(scale=self.own_guidance)
            coupling = self.own_coupling or coupling
        lesson.learner.total_steps = phase.steps
        wanted = dataclasses.replace(coupling, guidance=guidance, teaching=self.teaching)
        pairs = lesson.run.stage(f"pairs {number}", wanted, data=lesson.data, teacher=given, stream=f"round {number} ")
        lesson.state = Round(pairs, made)

    def moment(self, lesson: Lesson, phase: Phase, step: int) -> Moment:
        """Draw stored pairs, with their conditions and guidance; reflow drops a share of conditions."""
        drop = 0.0 if phase.settings.get("ends") else self.drop
        pairs, embedded = lesson.state.pairs, self.guidance.embedded
        return stored(lesson, pairs, self.train.batch, phase, step, embedded=embedded, drop=drop)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the error of the velocity; at t = 1 that is the error of the sample."""
        batch, view = moment.batch, lesson.view
        t = self.times.draw(batch.total, view.process, moment.run.rng("time", moment.step))
        ends = bool(moment.phase.settings.get("ends"))
        t = batch.mine(torch.ones_like(t) if ends else t)
        x_t = view.process.diffuse(batch.x0, batch.noise, t).to(batch.x0.dtype)
        velocity: Tensor = view.output(x_t, t, moment.condition)
        yield {"distance" if ends else "velocity": batch.mean(
            sample_distance(batch.noise - velocity, batch.x0, self.distance)
        )}  # fmt: skip


def on_flow(lesson: Lesson, **changes: Any) -> Lesson:
    """Let what the student's network gives be the velocity of flow matching from now on, whatever it was before."""
    process = lesson.student.reading.process
    process = process if isinstance(process, FlowProcess) else FlowProcess()
    lesson.student = lesson.student.with_module(
        lesson.student.module, process=process, prediction="velocity", **changes
    )
    return lesson


def one_step(view: View, noise: Tensor, condition: Condition) -> Tensor:
    """Return ε − v(ε, 1) `[n, …]`, where one step leads unit noise."""
    return noise - view.velocity(noise, torch.ones(len(noise), dtype=torch.float64, device=noise.device), condition)


def frozen(sampler: Sampler) -> Sampler:
    """Return a sampler whose network asks for no gradient."""
    sampler.module.requires_grad_(False).eval()
    return sampler

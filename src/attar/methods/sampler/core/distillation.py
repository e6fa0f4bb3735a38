"""The loop of every distillation: a teacher, a student, phases, and the terms that a method yields in each step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attar import progress
from attar.artifacts.adapted import AdaptedSampler
from attar.artifacts.drawing import Drawing
from attar.artifacts.sampler import Reading, Sampler
from attar.data import Samples
from attar.diffusion.denoiser import Denoiser
from attar.diffusion.process import Process
from attar.diffusion.solvers import Draw
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError
from attar.methods.sampler.core.teacher import GivenTeacher, Teacher, TeacherGuidance, ready, seen
from attar.methods.sampler.core.training import Batch, SamplerTraining, batch_of, trained
from attar.methods.sampler.diffusion import Diffusion
from attar.nets.adapter_specs import GuidanceAdapters, LoRA
from attar.nets.denoiser_specs import DenoiserNet, Extras
from attar.nets.denoisers import told
from attar.run import Learner, Run
from attar.spec import method

Terms = Iterator[Mapping[str, Tensor]]  # one backward each: terms that share a graph stand in one mapping


@dataclass(frozen=True)
class Phase:
    """A loop of its own: its name and length, and what is special in it."""

    name: str
    steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # whatever the method reads, such as {"segments": 4}


@dataclass(eq=False)
class Lesson:
    """Everything that lives as long as the run.

    Attributes:
        run: where randomness, loops and learners come from.
        data: what the teacher learned.
        teacher: frozen; none where a method needs none and none was given.
        student: the live student; its module is trained.
        learner: of the student; its averages are `evaluated` and, where asked for, `target`.
        state: what the method's `build` made.
        given: inputs beside data and teacher, by name.
    """

    run: Run
    data: Samples
    teacher: Teacher | None
    student: Sampler
    learner: Learner
    state: Any = None
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def process(self) -> Process:
        """The process that student and teacher live on."""
        return self.view.process

    @property
    def view(self) -> Denoiser:
        """The live student."""
        return self.student.denoiser

    @property
    def target(self) -> Denoiser:
        """The average of the student's weights that targets are made with, or the student itself."""
        module = self.learner.ema.get("target")
        return self.view if module is None else self.student.with_module(module).denoiser


@dataclass(frozen=True, eq=False)
class Moment:
    """What one step is about.

    Attributes:
        batch: clean samples, noise and conditions.
        scale: the teacher's guidance g, one number or `[n]`.
        condition: what the student is told: the condition, and g − 1 where guidance is embedded.
        step: in its phase, from 0.
        phase: the phase.
    """

    run: Run
    batch: Batch
    scale: float | Tensor
    condition: Condition
    step: int
    phase: Phase

    def noise(self, name: str, like: Tensor, *counters: int) -> Tensor:
        """Return unit noise like values `[n, …]`: this process's rows of what is drawn for the whole batch."""
        shape = (self.batch.total, *like.shape[1:])
        return self.batch.mine(torch.randn(shape, generator=self.run.rng(name, self.step, *counters)))

    def drawing(self, name: str) -> Draw:
        """Return where a solver's noise comes from, call by call: `noise` with the number of the call."""
        number = itertools.count()
        return lambda x: self.noise(name, x, next(number))

    def neighbours(self, values: Tensor) -> Tensor:
        """Return what each sample's neighbour in the whole batch has, of values `[n, …]`."""
        return self.batch.mine(self.run.gather(values).roll(1, 0))


@method
class Distillation:
    """Distil a student sampler from a teacher. A subclass yields the `terms` of a step; the rest may stay as it is."""

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {"train": {"steps": 2000}, "teaching": Diffusion.presets["small"]},
    }
    second_time: ClassVar[bool] = False  # whether the student is told a second time

    net: DenoiserNet | None = None  # the student's; none: the teacher's, with its weights
    lora: LoRA | None = None  # low-rank updates of the teacher's network are trained, instead of a copy of it
    teaching: Diffusion = Diffusion()  # of a teacher that is not given, and the student's own form without any
    guidance: TeacherGuidance = TeacherGuidance()
    drop: float = Field(0.0, ge=0, lt=1)  # share of conditions that are dropped
    train: SamplerTraining = SamplerTraining()

    @property
    def asks(self) -> bool:
        """Whether a teacher is trained where none is given."""
        return True

    @property
    def target_decay(self) -> float | None:
        """The decay of the average called `target`; none for none."""
        return None

    @property
    def adapter(self) -> LoRA | GuidanceAdapters | None:
        """What is trained inside the teacher's network, which stays as it is; none: a network of the student's own."""
        return self.lora

    def phases(self) -> Sequence[Phase]:
        """Return the loops, in order."""
        return (Phase("distil", self.train.steps),)

    def build(self, lesson: Lesson) -> Any:
        """Return what the terms need beside, such as learners of a discriminator; registered before the first loop."""
        return None

    def enter(self, lesson: Lesson, phase: Phase) -> None:
        """Get ready for a phase; called on every start, with the state that the phase before ended with."""

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the student's terms of a step; none leave the student as it is."""
        yield from ()

    def after(self, lesson: Lesson, moment: Moment) -> None:
        """Let other learners take their steps, and targets move, behind the student's step."""

    def drawing(self) -> Drawing:
        """Return how samples of the student are drawn."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its student draws samples")

    def __call__(self, run: Run, *, data: Samples, teacher: GivenTeacher | None = None) -> Sampler:
        """Train the student."""
        return self.taught(self.begin(run, data, teacher))

    def taught(self, lesson: Lesson) -> Sampler:
        """Train the student of a lesson that has begun."""
        run = lesson.run
        lesson.state = self.build(lesson)
        for phase in self.phases():
            self.enter(lesson, phase)
            lesson.student.module.train()
            for step in run.loop(phase.name, phase.steps):
                moment = self.moment(lesson, phase, step)
                for terms in self.terms(lesson, moment):
                    run.backward(terms, lesson.learner)
                lesson.learner.step()
                self.after(lesson, moment)
        return lesson.student.with_module(trained(lesson.learner))

    def begin(self, run: Run, data: Samples, given: GivenTeacher | None, **more: Any) -> Lesson:
        """Return teacher and student as they start, with the student's learner; `more` inputs go to `lesson.given`."""
        data = seen(data, given)
        self.guidance.check(data)
        teacher = ready(run, data, given, self.teaching) if self.asks or given is not None else None
        known = teacher.sampler if teacher is not None else None
        if known is not None and known.reading.guided == "inside" and self.guidance.reading["guided"] != "two-calls":
            raise RecipeError(
                f"the teacher has a guidance of {known.reading.guidance:g} inside, and takes no other; set "
                "guidance.scale=1 guidance.highest=null guidance.embedded=no"
            )
        extras = Extras(guidance=self.guidance.embedded, second_time=self.second_time)
        changes: dict[str, Any] = {
            "drawing": self.drawing(),
            **self.guidance.reading,
        }
        if self.adapter is not None:
            student = self.adapted(run, known, extras, changes)
        elif known is not None and self.net is None:
            student = known.merged().copy(extras=extras, **changes)
        else:
            own: dict[str, Any] = {"process": self.teaching.process, "prediction": self.teaching.predicts}
            own = own if known is None else {name: getattr(known.reading, name) for name in own}
            net = self.net or self.teaching.net
            student = Sampler.fresh(net, data, Reading(**own, **changes), run.rng("net"), extras=extras)
        if getattr(student.net, "pipeline", "") and extras != Extras():
            progress.tell(
                "this student has an input for its guidance or a second time, which pipelines of diffusers do not "
                "have, so it cannot be exported as one; where it is the guidance, one guidance is learned instead by "
                "guidance.embedded=no guidance.highest=null"
            )
        module = student.module.to(run.device).requires_grad_(True)
        learner = self.train.learner(run, "student", module, target=self.target_decay)
        return Lesson(run, data, teacher, student, learner, given=more)

    def adapted(self, run: Run, known: Sampler | None, extras: Extras, changes: Mapping[str, Any]) -> Sampler:
        """Return the teacher's network with adapters in it, its weights shared.

        Raises:
            RecipeError: there is no network of a teacher, or the student was to have one of its own.
        """
        if known is None or self.net is not None:
            raise RecipeError(
                "adapters are trained inside a teacher's network; give a teacher that has one, and no net"
            )
        assert self.adapter is not None
        if self.adapter.told_guidance:
            extras = Extras(second_time=extras.second_time)  # the adapters read it, so the network need not
        return AdaptedSampler.around(known.merged(), self.adapter, run.rng("adapter"), extras=extras, **changes)

    def moment(self, lesson: Lesson, phase: Phase, step: int) -> Moment:
        """Draw what a step is about."""
        run = lesson.run
        batch = batch_of(run, lesson.data, self.train.batch, step, drop=self.drop)
        scale = self.guidance.draw(batch.total, run.rng("guidance", step))
        scale = batch.mine(scale) if isinstance(scale, Tensor) else scale
        embedded = scale - 1 if self.guidance.embedded and isinstance(scale, Tensor) else None
        return Moment(run, batch, scale, told(batch.condition, guidance=embedded), step, phase)

    def teacher_of(self, lesson: Lesson, moment: Moment) -> View:
        """Return the teacher with the step's guidance."""
        assert lesson.teacher is not None
        return lesson.teacher.guided(moment.scale)

"""Objectives: what a student is trained on, beside or instead of the labels. Each is a method that trains a student."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import nets
from attar.artifacts import Student
from attar.data import Images
from attar.errors import RecipeError
from attar.nets import ConvNet, Net
from attar.nets.initialise import seeded
from attar.run import SGD, Drop, Learner, Run
from attar.run.optimizers import Optimizer, Schedule
from attar.spec import method, spec
from attar.train.taps import EMBEDDING, Seen, Told, answers, shapes
from attar.train.teacher import Ensemble, Teacher, Teaching
from attar.train.training import Order, Training

_CRD_DROPS = (150 / 240, 180 / 240, 210 / 240)
_KEPT = 2**28  # bytes, at most, of what a teacher says of all samples at the places that are read


@spec
class StudentTraining(Training):
    """How a student is trained by a teacher. Defaults are the CRD benchmark's on CIFAR-100 (arXiv 1910.10699).

    One thing differs: crops are filled with the data's mean, where the benchmark's code fills them with black.
    """

    epochs: int = Field(240, ge=1)  # passes over the data, unless `steps` are given
    batch: int = Field(64, ge=1)
    optimizer: Optimizer = SGD(lr=0.05, momentum=0.9, weight_decay=5e-4)  # 0.01 for MobileNet and ShuffleNet
    schedule: Schedule | None = Drop(at=_CRD_DROPS, by=0.1)
    augment: str = "crop-and-flip"
    clip: float | None = Field(None, gt=0)  # largest gradient norm

    def total(self, count: int) -> int:
        """Return the number of optimizer steps for a set of `count` images."""
        return self.steps or self.epochs * -(-count // self.batch)


_AS_THEY_ARE = StudentTraining(augment="none")


@dataclasses.dataclass(frozen=True)
class Term:
    """One named part of a student's loss: a mean over the batch, and its weight."""

    name: str
    loss: Tensor
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a step reads: inputs in the space networks see, labels, and the samples' numbers in the data."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    step: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the training is."""

    step: int
    steps: int
    per_epoch: int

    def ramp(self, share: float) -> float:
        """Return a weight that grows with the epochs, counted from 1, and is 1 from `share` of them on; 1 if that is 0.

        >>> [Progress(step, 40, 10).ramp(1.0) for step in (0, 9, 10, 39)]
        [0.25, 0.25, 0.5, 1.0]
        """
        epochs = share * self.steps / self.per_epoch
        return min((self.step // self.per_epoch + 1) / epochs, 1.0) if epochs else 1.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an objective may look at before the first step. Shapes are of one sample."""

    run: Run
    data: Images
    student: nn.Module
    teacher: nn.Module | None
    student_shapes: dict[str, torch.Size]
    teacher_shapes: dict[str, torch.Size]
    train: StudentTraining = _AS_THEY_ARE  # of the student, whatever the parts of a sum give

    def refuse_lone_image(self) -> None:
        """Say that batch norm of vectors cannot learn from a batch of one image, before the first step.

        Raises:
            RecipeError: the last batch of an epoch holds one image.
        """
        if len(self.data) % self.train.batch == 1 and self.train.total(len(self.data)) * self.train.batch > len(
            self.data
        ):
            raise RecipeError(
                f"{len(self.data)} images in batches of {self.train.batch} leave one image alone, and batch norm of "
                f"vectors needs two; take train.batch={self.train.batch + 1}"
            )


@method
class Objective:
    """Train a student on labels and on what a teacher tells. A subclass yields the terms that the labels do not give.

    Nothing but the student's own network remains in the `Student` that comes out.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "student": {"depth": 2, "width": 16, "norm": "batch"},
            "teaching": {"epochs": 3, "augment": "none"},
            "train": {
                "steps": 700,
                "augment": "none",
                "schedule": {"kind": "cosine", "warmup": 50},
            },
        }
    }

    foreign: ClassVar[bool] = False  # whether the teacher may have other classes, since its features alone are read
    alone: ClassVar[str] = ""  # why it can be no part of a sum

    student: Net = ConvNet(depth=3, width=32, norm="batch")  # the network to be trained
    train: StudentTraining = StudentTraining()
    teaching: Teaching = Teaching(augment="crop-and-flip")  # of a teacher that is named as a network
    hard: float = Field(1.0, ge=0)  # weight of the cross-entropy with the labels
    weight: float = Field(1.0, ge=0)  # of all that the teacher gives

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the places in student and teacher that the terms read, see `attar.train.taps.place`."""
        return (), ()

    def build(self, setting: Setting) -> nn.Module:
        """Return what the terms need for training alone; its parameters join the student's optimizer.

        What has an optimizer of its own (`setting.run.learner`) is kept where `parameters()` does not see it.
        """
        return nn.Module()

    def learners(self, state: Any) -> Sequence[Learner]:
        """Return the learners that `build` made; they step with the student."""
        return ()

    def views(self, state: Any, batch: Batch, student: nn.Module) -> Batch:
        """Return what student and teacher are shown of a batch."""
        return batch

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the terms of a step."""
        yield from ()

    def weighed(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the terms of a step that have a weight, times the weight of all."""
        for term in self.terms(state, progress, student, teacher, batch):
            if term.weight * self.weight:
                yield dataclasses.replace(term, weight=term.weight * self.weight)

    def after(self, state: Any, student: Seen, teacher: Seen, batch: Batch) -> None:
        """Change what the next step will read, such as memories; called when this one is taken."""

    def target(self, student: Seen, batch: Batch) -> Term:
        """Return the cross-entropy with the labels: classes `[n]`, or probabilities `[n, classes]`."""
        loss = nn.functional.cross_entropy(student.logits, batch.labels)
        return Term("labels", loss, self.hard)

    def __call__(self, run: Run, *, data: Images, teacher: Teacher) -> Student:
        """Train the student and return it without anything that was there for training alone."""
        module = nets.fresh(self.student, data, run.rng("student"), device=run.device)
        self.teach(run, module, data, teacher)
        return Student(module.eval(), self.student, data.channels, data.size, data.classes)

    def teach(self, run: Run, module: nn.Module, data: Images, teacher: Any = None, loop: str = "distil") -> nn.Module:
        """Train a module in place, and return what the terms needed; several loops each have a name of their own."""
        teaches = Teacher(()) if teacher is None else Teacher.of(teacher)
        lessons = _Lessons(run, self, data, teaches, module, loop=loop)
        with seeded(run.rng("state")):  # the same in every process
            state = self.build(lessons.setting).to(run.device)
        steps = self.train.total(len(lessons))
        whole = nn.ModuleDict({"student": module, "state": state})
        name = "student" if loop == "distil" else f"student, {loop}"
        learner = run.learner(name, whole, self.train.optimizer, schedule=self.train, steps=steps, clip=self.train.clip)
        every = (learner, *self.learners(state))
        for step in run.loop(loop, steps):
            whole.train()
            progress = Progress(step, steps, -(-len(lessons) // self.train.batch))
            batch, student, told = lessons.step(step, state)
            found = list(self.weighed(state, progress, student, told, batch))
            found += [self.target(student, batch)] if self.hard else []
            if not found:
                raise RecipeError("every weight is 0, so there is nothing to learn; raise 'hard' or 'weight'")
            share = 1 if lessons.whole else run.world
            run.backward(_by_name(found, share), *every)
            for each in every:
                each.step()
            self.after(state, student, told, batch)
        return state


def _by_name(terms: Sequence[Term], share: int) -> dict[str, Tensor]:
    """Return weighted terms; those of one name, which two parts of a sum may give, add up."""
    found: dict[str, Tensor] = {}
    for term in terms:
        loss = term.loss * (term.weight / share)
        found[term.name] = found[term.name] + loss if term.name in found else loss
    return found


class _Lessons:
    """Who shows what to whom: the batches of a training, and what student and teacher say of them."""

    def __init__(
        self,
        run: Run,
        objective: Objective,
        data: Images,
        teacher: Teacher,
        student: nn.Module,
        *,
        loop: str = "distil",
    ) -> None:
        self.run, self.objective, self.student = run, objective, student
        self.source: Any = data
        self.labels: Tensor | None = None
        self.teacher: nn.Module | None = None
        self._told: tuple[Tensor, dict[str, Tensor]] | None = None
        if teacher.labels is not None:
            if objective.train.augment != "none":
                raise RecipeError("stored labels belong to the views they were made of; train with train.augment=none")
            self.source, self.labels = teacher.labels.source_of(data), data.labels
        elif teacher.members:
            self.teacher = teacher.ready(run, data, objective.teaching, foreign=objective.foreign)
        self.paths = objective.taps(student, self.teacher)
        if isinstance(self.teacher, Ensemble) and EMBEDDING in self.paths[1]:
            raise RecipeError("several teachers have no one 'embedding', and this objective reads it; name one teacher")
        self.setting = self._look(data)
        order = "order" if loop == "distil" else f"order of {loop}"  # the next loop's is another
        self.order = Order(self.source, objective.train, run.rng, order)
        self.whole = run.world > 1 and any(map(nets.batch_statistics, (student, *self._frozen())))

    def __len__(self) -> int:
        return len(self.source)

    def step(self, step: int, state: Any) -> tuple[Batch, Seen, Seen]:
        """Return the batch of a step, and what student and teacher say of it."""
        images, labels = self.order.batch(step)
        indices = self.order.plan.indices(step)
        batch = Batch(images, labels, indices, step)
        stored: Told | None = None
        if self.labels is not None:
            stored = Told(labels.clamp_min(torch.finfo(labels.dtype).tiny).log())
            samples = self.source.samples(indices)
            batch = dataclasses.replace(batch, labels=self.labels[samples], indices=samples)
        shown = self.objective.views(state, batch, self.student)
        student = Seen(self.run, self.student, shown.images, self.paths[0], whole=self.whole, frozen=False)
        if self.teacher is None and self.labels is None:
            return shown, student, Told(None)
        if shown is batch:
            stored = stored or self._asked_once(batch)
            if stored is not None:
                return shown, student, stored
        if self.teacher is None:
            raise RecipeError("this objective changes what the teacher is shown, so it needs the teacher itself")
        return shown, student, Seen(self.run, self.teacher, shown.images, self.paths[1], whole=self.whole, frozen=True)

    def _asked_once(self, batch: Batch) -> Told | None:
        """Return what the teacher says of a batch, asked once for all images where nothing changes them; else None.

        Kept is what takes a quarter of a gigabyte at most; larger maps of more samples are asked for anew in each step.
        """
        size = 4 * len(self) * sum(math.prod(shape) for shape in self.setting.teacher_shapes.values())
        if self.teacher is None or self.objective.train.augment != "none" or size > _KEPT:
            return None
        if self._told is None:
            images = self.objective.train.total(len(self)) * self.objective.train.batch
            if images < 2 * len(self):
                return None
            self._told = answers(self.teacher, self.source, self.paths[1])
        logits, found = self._told
        at_batch = {path: told[batch.indices] for path, told in found.items()}
        return Told(logits[batch.indices], at_batch, self.paths[1])

    def _frozen(self) -> tuple[nn.Module, ...]:
        return () if self.teacher is None else (self.teacher,)

    def _look(self, data: Images) -> Setting:
        """Pass two images through both networks, so that a wrong place is told before the first step."""
        two = data.normalised(torch.arange(2)).to(self.run.device)
        mine, theirs = self.paths
        if theirs and self.teacher is None:
            raise RecipeError("stored labels hold no features, and this objective reads some; name the teacher itself")
        seen = shapes(self.student, two, mine) if mine else {}
        told = shapes(self.teacher, two, theirs) if self.teacher is not None and theirs else {}
        return Setting(self.run, data, self.student, self.teacher, seen, told, self.objective.train)

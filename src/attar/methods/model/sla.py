"""SLA: classes and transformations are told apart together, and the answers to all views teach the single one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from attar import losses, nets
from attar.artifacts.aggregated import Aggregated, AggregatedStudent, aggregated
from attar.artifacts.student import Student
from attar.data import Images
from attar.data.transformations import Transformations, count, transformed
from attar.run import SGD, Drop, Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, StudentTraining, Term
from attar.train.taps import EMBEDDING, Seen
from attar.train.teacher import Teacher

_TRAIN = StudentTraining(
    steps=80_000,
    batch=128,
    optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=1e-4),
    schedule=Drop(at=(0.5, 0.75), by=0.1),  # the paper's of CIFAR; on ImageNet a drop every third
)


@method
class LabelAugmentation(Objective):
    """Predict class and transformation jointly (Lee, Hwang & Shin 2020, arXiv 1910.05872). There is no teacher.

    Every picture is shown under M transformations, with M labels a class. L = joint CE, and with `answer="distilled"`
    + hard · CE(u(x), y) + T² · KL(σ(P / T) ‖ σ(u(x) / T)), where u is the network's own head and P the mean over
    transformations of what the joint head says of each class. A step costs M times a plain one. Turns harm where
    classes are each other's turns, such as 6 and 9.
    """

    version: ClassVar = 1

    train: StudentTraining = _TRAIN
    hard: float = Field(1.0, ge=0)  # weight of the cross-entropy of the single answer with the labels
    weight: float = Field(1.0, ge=0)  # of the joint head, and of its teaching the single answer
    transformations: Transformations = "turns"  # 4 turns, 6 or 3 orders of three colours, or each with each
    labels: Literal["joint", "both", "invariant"] = "joint"  # baselines: two heads of one sum; classes alone
    answer: Literal["distilled", "aggregate", "first"] = "distilled"  # M passes, or the joint head on x alone
    temperature: float = Field(1.0, gt=0)
    beta: float = Field(1.0, ge=0)  # weight of the distillation
    sum_views: bool = False  # the joint loss M times as large, better on ImageNet

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train the student; a teacher that is given counts nothing."""
        module = nets.fresh(self.student, data, run.rng("student"), device=run.device)
        state: Any = self.teach(run, module, data)
        if self.labels == "joint" and self.answer == "aggregate":
            return self._aggregate(run, module, state.head, data)
        if self.labels == "joint" and self.answer == "first":
            many = count(self.transformations)
            module.head.load_state_dict({name: value[::many] for name, value in state.head.state_dict().items()})
        return Student(module.eval(), self.student, data.channels, data.size, data.classes)

    def _aggregate(self, run: Run, module: nn.Module, head: nn.Linear, data: Images) -> AggregatedStudent:
        """Return the network with the joint head in the place of its own."""
        joint = self.student.build(data.channels, data.size, head.out_features).to(run.device)
        body = {name: value for name, value in module.state_dict().items() if not name.startswith("head.")}
        joint.load_state_dict(body | {f"head.{name}": value for name, value in head.state_dict().items()})
        whole = Aggregated(joint, self.transformations).eval()
        return AggregatedStudent(whole, self.student, data.channels, data.size, data.classes)

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return what the student's own head reads."""
        return [EMBEDDING], ()

    def build(self, setting: Setting) -> nn.Module:
        """Return the joint head, or that of the transformations alone."""
        many = count(self.transformations)
        outputs = many if self.labels == "both" else many * setting.data.num_classes
        state = nn.Module()
        state.head = nn.Linear(setting.student_shapes[EMBEDDING][0], outputs)
        return state

    def views(self, state: Any, batch: Batch, student: nn.Module) -> Batch:
        """Show every picture under all transformations, those of one picture in a row."""
        many = count(self.transformations)
        labels, indices = (values.repeat_interleave(many) for values in (batch.labels, batch.indices))
        images = transformed(batch.images, self.transformations)
        return dataclasses.replace(batch, images=images, labels=labels, indices=indices)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the joint head's loss and what it teaches the single answer, or the loss of the second head."""
        many = count(self.transformations)
        shown = torch.arange(len(batch.labels), device=batch.labels.device) % many
        if self.labels == "both":
            yield Term("transformations", losses.cross_entropy(state.head(student.embedding), shown))
        if self.labels != "joint":
            return
        joint = state.head(student.embedding)
        yield Term("joint", losses.cross_entropy(joint, batch.labels * many + shown), many if self.sum_views else 1.0)
        if self.answer == "distilled":
            mean = aggregated(joint, many).detach()
            yield Term("views", losses.kl_divergence(student.logits[::many], mean, self.temperature), self.beta)

    def target(self, student: Seen, batch: Batch) -> Term:
        """Return the cross-entropy of the single answer; of the answers to all views for the baselines."""
        if self.labels != "joint":
            return Term("labels", losses.cross_entropy(student.logits, batch.labels), self.hard)
        many = count(self.transformations)
        single = losses.cross_entropy(student.logits[::many], batch.labels[::many])
        return Term("labels", single, self.hard if self.answer == "distilled" else 0.0)

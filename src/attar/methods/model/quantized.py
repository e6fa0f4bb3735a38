"""Quantized distillation and differentiable quantization: a student of few weight values (arXiv 1802.05668)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses, nets
from attar.artifacts.quantized import QuantizedStudent
from attar.artifacts.student import Student
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.model.kd import KnowledgeDistillation
from attar.nets import quantisation
from attar.nets.quantisation import Quantised, Rounding, Through
from attar.run import SGD, Constant, Drop, Learner, Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Setting, StudentTraining
from attar.train.teacher import Teacher

_SMALL: Any = Objective.presets["small"]
_PAPER = StudentTraining(
    epochs=200,
    batch=25,
    optimizer=SGD(lr=1e-3, momentum=0.9, weight_decay=2.2e-4, nesterov=True),
    schedule=Drop(at=(0.5, 0.7, 0.9), by=0.5),  # the paper halves it whenever ten epochs bring nothing
)
_POINTS = StudentTraining(epochs=30, batch=25, optimizer=SGD(lr=1e-5, momentum=0.9), schedule=Constant())


@method
class QuantizedDistillation(KnowledgeDistillation):
    """Distil into a student whose weights take few values (Polino, Pascanu & Alistarh 2018, arXiv 1802.05668).

    With `learn="weights"` (quantized distillation) forward and backward pass at Q(w), and the gradient is applied to
    the float w. With `learn="points"` (differentiable quantization) a student is distilled in float, its weights are
    fixed, and gradients move the points that they are rounded to, with the float student as teacher. "both" takes an
    epoch of each in turn. All parameters are quantised, in buckets with their own scale.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {
            **_SMALL,
            "train": {**_SMALL["train"], "batch": 64, "optimizer": {"lr": 0.05}},
            "point_train": {"steps": 200, "batch": 64, "augment": "none", "optimizer": {"lr": 1e-3}},
        }
    }

    hard: float = Field(0.3, ge=0)  # weight of the cross-entropy with the labels
    weight: float = Field(0.7, ge=0)  # of the teacher
    temperature: float = Field(2.0, gt=0)
    train: StudentTraining = _PAPER
    bits: int = Field(4, ge=1, le=8)  # a weight takes 2^bits values in its bucket; the paper has 2, 4 and 8
    bucket: int | None = Field(256, ge=2)  # values that share a scale; none: the whole tensor
    learn: Literal["weights", "points", "both"] = "weights"
    rounding: Rounding = "nearest"  # or stochastic, while training
    through: Through = "straight"  # scales: the gradient passes through the scales of the buckets too
    clamp: bool = False  # cut weights to [−1, 1] first; no gradient outside
    float_ends: bool = False  # leave the first and the last layer as they are
    start: Literal["quantiles", "even"] = "quantiles"  # of learned points; fixed ones are even
    allot: bool = True  # learned points: tensors of larger gradients get more of them
    point_train: StudentTraining = _POINTS  # of learned points

    def __call__(self, run: Run, *, data: Images, teacher: Teacher) -> Student:
        """Train the student and return it with the codes of its weights."""
        teacher, trained = Teacher.of(teacher), self
        module = nets.fresh(self.student, data, run.rng("student"), device=run.device)
        if self.learn == "points":
            told = run.stage("float student", self.plain(), seed=run.seed, data=data, teacher=teacher)
            module.load_state_dict(told.module.state_dict())
            module.requires_grad_(False)
            teacher, trained = Teacher.of(told), dataclasses.replace(self, train=self.point_train)
        for name, quantised in self.quantisers(module, data).items():
            quantisation.attach(module, name, quantised)
        trained.teach(run, module, data, teacher)
        coded = quantisation.detach(module.eval())
        student = Student(module, self.student, data.channels, data.size, data.classes)
        return QuantizedStudent.of(student, coded)

    def plain(self) -> KnowledgeDistillation:
        """Return the distillation of the float student."""
        names = [field.name for field in dataclasses.fields(KnowledgeDistillation)]
        return KnowledgeDistillation(**{name: getattr(self, name) for name in names})

    def quantisers(self, module: nn.Module, data: Images) -> dict[str, Quantised]:
        """Return what quantises each parameter of a float network."""
        parameters = dict(module.named_parameters())
        owners = list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
        ends = {owners[0], owners[-1]} if self.float_ends else set()
        chosen = {name: value for name, value in parameters.items() if name.rpartition(".")[0] not in ends}
        levels = [2**self.bits] * len(chosen)
        if self.learn != "weights" and self.allot:
            levels = quantisation.allotted(_gradient_norms(module, list(chosen.values()), data), 2**self.bits)
        return {
            name: self._quantiser(value, count) for (name, value), count in zip(chosen.items(), levels, strict=True)
        }

    def _quantiser(self, value: Tensor, levels: int) -> Quantised:
        points: Tensor = quantisation.even_points(levels).to(value.device)
        if self.learn != "weights" and self.start == "quantiles":
            unit = quantisation.scaled(quantisation.buckets(value.detach(), self.bucket))[0]
            points = quantisation.quantile_points(unit, levels)
        if self.learn == "points":
            points = nn.Parameter(points)
        made = Quantised(points, self.bucket, rounding=self.rounding, through=self.through, clamp=self.clamp)
        made.learns_points = self.learn == "points"
        return made

    def build(self, setting: Setting) -> nn.Module:
        """Return what the steps ask for: the quantisers, and the learner of points where weights learn as well."""
        state: Any = nn.Module()
        state.run, state.every = setting.run, list(quantisation.attached(setting.student).values())
        if not state.every:
            raise RecipeError(
                "quantized-distillation trains a network of its own kind; run it by itself, not in a sum of objectives"
            )
        state.epoch = -(-len(setting.data) // self.train.batch)
        state.learner = []
        if self.learn == "both":
            points = [quantised.points for quantised in state.every]
            steps = self.train.total(len(setting.data))
            optimizer, schedule = self.point_train.optimizer, self.point_train
            state.learner = [setting.run.learner("points", points, optimizer, schedule=schedule, steps=steps)]
        made: nn.Module = state
        return made

    def learners(self, state: Any) -> Sequence[Learner]:
        """Return the points' learner, if they have one of their own."""
        learner: Sequence[Learner] = state.learner
        return learner

    def views(self, state: Any, batch: Batch, student: nn.Module) -> Batch:
        """Prepare the quantisers for a step: whose turn it is, and the draws of stochastic rounding."""
        rng = state.run.rng("rounding", batch.step)
        for quantised in state.every:
            quantised.rng = rng
            if self.learn == "both":
                quantised.learns_points = batch.step // state.epoch % 2 == 1
        return batch


def _gradient_norms(module: nn.Module, parameters: list[Tensor], data: Images, batches: int = 5) -> list[float]:
    """Return the norm of the labels' gradient of each parameter over the first mini-batches, in evaluation mode."""
    module.eval()
    needed = [parameter.requires_grad for parameter in parameters]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    spread = torch.linspace(0, len(data) - 1, min(batches * 64, len(data))).long()  # of all classes
    for part in spread.chunk(batches):
        images, labels = data.batch(part)
        loss = losses.cross_entropy(module(images.to(total[0].device)), labels.to(total[0].device))
        total = [one + more for one, more in zip(total, torch.autograd.grad(loss, parameters), strict=True)]
    for parameter, before in zip(parameters, needed, strict=True):
        parameter.requires_grad_(before)
    return [float(value.norm()) for value in total]

"""MEAL V2: a trained student learns the mean probabilities of several teachers, beside a discriminator (2009.08453)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.artifacts import Student
from attar.data import Images
from attar.data.soft_labels import Views
from attar.errors import RecipeError
from attar.run import SGD, Drop, Learner, Run
from attar.run.optimizers import Optimizer
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, StudentTraining, Term
from attar.train.taps import Seen
from attar.train.teacher import Ensemble, Teacher, Teaching

_SMALL: Any = Objective.presets["small"]


@method
class EnsembleDistillation(Objective):
    """Improve a trained student with the mean probabilities of teachers, without labels (Shen & Savvides 2020).

    L = −Σ_k p̄_k log σ(z_s)_k + adversary · L_D, with p̄ the teachers' mean probability at T = 1. The discriminator D
    tells the student's logits from the teachers' mean logits; student and D both minimise L_D, so the student does not
    fool D, it stays apart from its teachers. Without `start`, the student is first trained on the labels. Source: arXiv
    2009.08453.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {
            **_SMALL,
            "train": {**_SMALL["train"], "batch": 64},
            "pretraining": {"epochs": 3},
            "crops": {"scale": [0.5, 1.0]},
        }
    }

    train: StudentTraining = StudentTraining(
        epochs=180,
        batch=512,
        augment="none",
        optimizer=SGD(lr=0.01, momentum=0.9),  # no weight decay: soft labels are enough of a bound
        schedule=Drop(at=(100 / 180,), by=0.1),
    )
    hard: float = Field(0.0, ge=0)  # weight of the cross-entropy with the labels, which brings overfitting back
    crops: Views | None = (
        Views()
    )  # random resized crops and flips; mix=cutmix for the 80.98 % of the paper; none: whole
    pretraining: Teaching = Teaching()  # of the student on the labels, where no `start` is given
    adversary: float = Field(1.0, ge=0)  # weight of the discriminator's loss; 0: none
    adversary_optimizer: Optimizer = SGD(lr=1e-4, momentum=0.9)  # the released code overwrites it with the student's
    final_relu: bool = True  # behind the last layer too, as released; both outputs may die there, so false is safer
    sees: Literal["logits", "probabilities"] = "logits"  # of the discriminator; probabilities with stored labels

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the place of the logits of an ensemble's members, which the discriminator is shown."""
        if not isinstance(teacher, Ensemble) or not self.adversary or self.sees == "probabilities":
            return (), ()
        return (), ["each"]

    def build(self, setting: Setting) -> nn.Module:
        """Return what `views` and `terms` need; the discriminator has an optimizer of its own.

        Raises:
            RecipeError: labels are to count on mixed images, or crops stand in for what is to be augmented.
        """
        if self.hard and self.crops is not None and self.crops.mix != "none":
            raise RecipeError("mixed images have no one label for 'hard' to weigh; leave it at 0, or crops.mix at none")
        if self.crops is not None and setting.train.augment != "none":
            raise RecipeError(
                "crops are cut from images as they are: set train.augment=none, or crops=null for whole ones"
            )
        state: Any = nn.Module()
        state.data, state.key, state.own = setting.data, setting.run.key("crops"), []
        if self.adversary:
            module = discriminator(setting.data.num_classes, final_relu=self.final_relu).to(setting.run.device)
            state.own = [setting.run.learner("discriminator", module, self.adversary_optimizer)]
        return state

    def learners(self, state: Any) -> Sequence[Learner]:
        """Return the discriminator's learner."""
        return list(state.own)

    def views(self, state: Any, batch: Batch, student: nn.Module) -> Batch:
        """Return crops of the batch, which student and teachers are shown alike."""
        if self.crops is None:
            return batch
        numbers = torch.full_like(batch.indices, batch.step)
        images = self.crops.images(state.data, state.key, batch.indices, numbers).to(batch.images.device)
        return Batch(images, batch.labels, batch.indices, batch.step)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the cross-entropy with the mean probabilities, and the discriminator's loss."""
        yield Term("ensemble", losses.soft_cross_entropy(student.logits, teacher.logits.softmax(1)))
        if self.adversary:
            mine, theirs = student.logits, mean_logits(teacher)
            if self.sees == "probabilities":
                mine, theirs = mine.softmax(1), teacher.logits.softmax(1)
            yield Term("discriminator", told_apart(state.own[0].module, mine, theirs), self.adversary)

    def __call__(self, run: Run, *, data: Images, teacher: Teacher, start: Student | None = None) -> Student:
        """Go on training `start`, or a student that is trained on the labels first, and return it."""
        if start is None:
            start = run.stage("start", self.pretraining.method(self.student), seed=run.seed, data=data)
        if start.classes != tuple(data.classes) or (start.channels, start.size) != (data.channels, data.size):
            raise RecipeError(f"the student to start from does not read {data.source}: train it on this data")
        module = copy.deepcopy(start.module).to(run.device).requires_grad_(True)
        self.teach(run, module, data, teacher)
        return Student(module.eval(), start.net, data.channels, data.size, data.classes)


def discriminator(classes: int, *, final_relu: bool = True) -> nn.Sequential:
    """Return linear layers classes → classes / 8 → classes / 64 → 2, each with ReLU; a few units at least.

    The paper has 1,000 classes, and so 125 and 15 units; of ten classes nothing would be left.
    """
    first, second = max(4, classes // 8), max(4, classes // 64)
    layers = [nn.Linear(classes, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)]
    return nn.Sequential(*layers, nn.ReLU()) if final_relu else nn.Sequential(*layers)


def told_apart(judge: nn.Module, student: Tensor, teachers: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of a judge's two outputs: (1, 0) for students' rows, (0, 1) for teachers'.

    Both arguments `[n, classes]`; gradients flow to the judge and to the student, not to the teachers.
    """
    rows = judge(torch.cat([student, teachers.detach()]))
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=rows.device).repeat_interleave(len(student), 0)
    return nn.functional.binary_cross_entropy_with_logits(rows, wanted)


def mean_logits(teacher: Seen) -> Tensor:
    """Return the mean of the members' logits as they are, or the logits of a single teacher."""
    if not teacher.paths:
        return teacher.logits
    return teacher.at(teacher.paths[0]).mean(1)

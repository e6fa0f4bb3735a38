"""What the claims of model distillation share: a teacher that has seen many labels, and students that have few."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from attar.artifacts import Student
from attar.claims.claim import Claim, Trial
from attar.data import Images
from attar.data.sources import Splits
from attar.metrics import accuracy, expected_calibration_error, negative_log_likelihood
from attar.nets import ConvNet, DoublingConvNet, Net
from attar.run import SGD, Cosine, Run
from attar.train.objective import Objective, StudentTraining
from attar.train.teacher import Teacher, Teaching
from attar.train.training import Training, predict

SEEN = 24_000  # images that the teacher is trained on
LABELLED = 100  # images of each class that students have, with labels


@dataclasses.dataclass(frozen=True)
class Shares:
    """Who knows which images of the training set: `labelled` is a part of `seen`, `unseen` is the rest."""

    seen: Images
    labelled: Images
    unseen: Images


class VisionClaim(Claim):
    """An arm trains a small student on few labels with the help of a teacher that was trained on many.

    Three copies of the teacher, each with images of its own, are dealt to the seeds in turn; a seed draws the labelled
    images, initial weights and batches. All arms of a seed share these, and all claims share teachers and equal arms.
    """

    net: ClassVar[Net] = DoublingConvNet(depth=3, width=8, norm="batch")  # the student, 11,000 parameters
    teacher_net: ClassVar[Net] = ConvNet(depth=3, width=32, norm="batch")
    teaching: ClassVar[Teaching] = Teaching(epochs=3)
    steps: ClassVar = 700
    batch: ClassVar = 64
    copies = 3
    currency = "updates"
    fixed: ClassVar[Sequence[str]] = (
        "the test set",
        "three copies of the teacher, each with the 24,000 images it has seen",
    )
    source = "fashion-mnist"
    quick_source = "fashion-mnist-mini"
    uses = ("attar.claims.vision",)

    def shares(self, run: Run, data: Images) -> Shares:
        """Deal the training images: what the teacher saw belongs to its copy, what is labelled to the seed."""
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(run.copy))
        count = min(SEEN, len(data) // 2)
        seen = data.subset(order[:count])
        each = min(LABELLED, *(len(members) // 2 for members in seen.by_class))
        labelled = seen.subset(seen.choose_per_class(each, run.rng("labelled")))
        return Shares(seen, labelled, data.subset(order[count:]))

    def teacher(
        self, run: Run, seen: Images, net: Net | None = None, *, name: str = "teacher", training: Training | None = None
    ) -> Student:
        """Return a network trained on the images it may see, in a stage that arms, seeds and claims share.

        `training` stands in for `teaching`, for networks that SGD does not train well.
        """
        teaching = dataclasses.replace(self.teaching, epochs=1, batch=200) if self.quick else self.teaching
        data = seen.subset(torch.arange(min(len(seen), 1000))) if self.quick else seen
        method = teaching.method(net or self.teacher_net)
        if training is not None:
            shorter = dataclasses.replace(training, steps=3) if self.quick else training
            method = dataclasses.replace(method, training=shorter)
        made: Student = run.stage(name, method, data=data)
        passes = method.training.total(len(data)) * min(method.training.batch, len(data))
        self.meter.add(forward=passes, backward=passes)
        return made

    def training(self, trial: Trial, **changes: Any) -> StudentTraining:
        """Return how a student is trained, with the learning rate of a trial; a few steps in the quick form."""
        optimizer = SGD(lr=trial.get("lr", 0.05), momentum=0.9, weight_decay=trial.get("weight_decay", 5e-4))
        fields = {"steps": self.steps, "batch": self.batch, "optimizer": optimizer, "augment": "none", **changes}
        warmup = Cosine(warmup=min(50, fields["steps"] // 10))
        if self.quick:
            fields |= {"steps": 3, "batch": 16}
        return StudentTraining(schedule=warmup, **fields)

    def student(
        self, run: Run, objective: Objective, data: Images, teacher: Any, *, seed: int, **inputs: Any
    ) -> Student:
        """Return the student that an objective trains, and count what it takes; equal arms of claims share it."""
        alone = teacher is None or type(objective) is Objective  # labels alone: nobody is asked
        told = Teacher(()) if alone else Teacher.of(teacher)
        made: Student = run.stage("student", objective, seed=seed, data=data, teacher=told, **inputs)
        self.count(objective, data, asked=not alone)
        return made

    def further(self, run: Run, objective: Objective, start: Student, data: Images, teacher: Any) -> Student:
        """Return a student that went on training from where another stands, and count what it takes."""
        module = copy.deepcopy(start.module).requires_grad_(True)
        objective.teach(run, module, data, Teacher.of(teacher))
        self.count(objective, data)
        return Student(module.eval(), start.net, data.channels, data.size, data.classes)

    def count(self, objective: Objective, data: Images, *, asked: bool = True) -> None:
        """Count the steps of a student, and what its teacher is asked."""
        steps = objective.train.steps or 1
        passes = steps * min(objective.train.batch, len(data))
        self.meter.add(updates=steps, examples=passes, forward=passes, backward=passes)
        if asked:
            self.meter.add(teacher_calls=passes, forward=passes)

    def judge(self, splits: Splits, student: Student) -> dict[str, float]:
        """Return accuracy, calibration error in 15 bins and negative log-likelihood on the test images."""
        return judged(predict(student.module, splits.test), splits.test.labels)


def judged(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, calibration error in 15 bins and negative log-likelihood of logits `[n, classes]`."""
    return {
        "accuracy": accuracy(logits, labels),
        "calibration_error": expected_calibration_error(logits.double().softmax(1), labels),
        "nll": negative_log_likelihood(logits, labels),
    }

"""The claim of quantized distillation: weights of four values learn more from a teacher than from labels alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from attar.artifacts import Student
from attar.artifacts.quantized import QuantizedStudent
from attar.claims.claim import Contrast, Trial
from attar.claims.vision import VisionClaim
from attar.methods.model.quantized import QuantizedDistillation
from attar.nets import quantisation
from attar.run import SGD, Constant, Run
from attar.spec import method
from attar.train.objective import Objective

AT = "2 bits a weight, 1,000 labelled images, 700 updates"
LONGER = 1.5  # times the updates: an image that a teacher answers passes forward twice and back once


@method
class LabelsAlone(QuantizedDistillation):
    """The same quantised training without a teacher."""

    terms = Objective.terms


class QuantizedDistillationClaim(VisionClaim):
    """Quantized distillation against the same quantised training on labels alone, at equal updates and at equal passes.

    Beside it: the distilled float student, the same rounded afterwards with the same buckets, and differentiable
    quantization, which spends further updates on its points.
    """

    id = "quantized-distillation"
    title = "Model compression via distillation and quantization"
    says = "CIFAR-10, 2 bits: 82.4 % with a teacher, where rounding afterwards gives 10 % (arXiv 1802.05668, recalled)"
    origin = (
        "the card of the base losses: distillation is worth 3 to 5 points to a float student on this rig; no pilot; "
        "labels alone for as many passes were written down after a first verdict, of 2.8 points at equal updates"
    )
    primary = (
        Contrast(method="distilled", baseline="labels", at=AT, worst=0.1),
        Contrast(method="distilled", baseline="labels, longer", at=f"{AT}; 1,050 on labels", worst=0.1),
    )
    secondary = (
        Contrast(method="distilled", baseline="rounded", at=AT, worst=0.1),
        Contrast(method="points", baseline="rounded", at=AT, worst=0.1),
        Contrast(method="distilled", baseline="float", form="not-worse", at=AT, worst=0.1, delta=0.03, expects=0.0),
    )
    expects = 0.03
    delta = 0.015
    seeds = 10
    grids: ClassVar = {
        "distilled": {"lr": [0.02, 0.05, 0.1]},
        "labels": {"lr": [0.02, 0.05, 0.1]},
        "labels, longer": {"lr": [0.02, 0.05, 0.1]},
        "rounded": {"lr": [0.02, 0.05, 0.1]},
        "float": {"lr": [0.02, 0.05, 0.1]},
        "points": {"point_lr": [1e-4, 1e-3, 1e-2]},
    }
    methods = ("quantized-distillation", "kd")
    trial_seeds = 2
    bits: ClassVar = 2
    bucket: ClassVar = 256
    point_steps: ClassVar = 200

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Train and quantise a student as the arm does; return how well it does and what it takes to store."""
        splits = self.splits(run)
        shares = self.shares(run, splits.train)
        teacher: Student | None = None
        if not name.startswith("labels"):
            with self.meter.teaching():
                teacher = self.teacher(run, shares.seen)
        method = self.method(name, trial)
        if name not in {"rounded", "float"}:
            student = self.student(run, method, shares.labelled, teacher, seed=seed)
            if name == "points":
                steps, batch = method.point_train.steps or 1, method.point_train.batch
                self.meter.add(updates=steps, examples=steps * batch, forward=steps * batch, backward=steps * batch)
        else:
            student = self.student(run, method.plain(), shares.labelled, teacher, seed=seed)
        if name == "rounded":
            student = rounded(student, method, shares.labelled)
        self.meter.add(stored_bytes=student.bytes)
        return {**self.judge(splits, student), "bytes": float(student.bytes)}

    def method(self, name: str, trial: Trial) -> QuantizedDistillation:
        """Return the method of an arm; without a teacher all the weight is on the labels."""
        training = self.training(trial, steps=round(self.steps * (LONGER if "longer" in name else 1)))
        optimizer = SGD(lr=trial.get("point_lr", 1e-3), momentum=0.9)
        steps = 2 if self.quick else self.point_steps
        alone = name.startswith("labels")
        made = LabelsAlone if alone else QuantizedDistillation
        return made(
            student=self.net,
            train=training,
            point_train=dataclasses.replace(training, steps=steps, optimizer=optimizer, schedule=Constant()),
            bits=self.bits,
            bucket=self.bucket,
            learn="points" if name == "points" else "weights",
            hard=1.0 if alone else 0.3,
            weight=0.7,
        )


def rounded(student: Student, method: QuantizedDistillation, data: Any) -> QuantizedStudent:
    """Return a float student rounded as the method would, without training."""
    for name, quantised in method.quantisers(student.module, data).items():
        quantisation.attach(student.module, name, quantised)
    return QuantizedStudent.of(student, quantisation.detach(student.module.eval()))

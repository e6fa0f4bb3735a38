"""Tf-KD: a teacher made by hand, right with a probability that is given (arXiv 1909.11723)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from attar import losses
from attar.artifacts import Student
from attar.data import Images
from attar.losses.logits import Softening
from attar.run import Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Term
from attar.train.taps import Seen
from attar.train.teacher import Teacher


@method
class TeacherFreeKD(Objective):
    """Regularise by a virtual teacher (Yuan et al. 2020, arXiv 1909.11723). There is no other.

    L = hard · CE + weight · KL(u ‖ σ(z_s)), with u = σ(p / T) of the p that gives `correct` to the label and the rest
    evenly to the other classes. That is what the official code has. As the paper writes it (student_temperature=null
    softening=power) the student is softened by T, too, and u is p^(1/T): with no T² the gradient of the term is then a
    few thousandths of that of the labels. The paper's other form learns from an earlier copy of the network, which is
    `kd` with the network itself as its teacher.
    """

    version: ClassVar = 2

    hard: float = Field(0.9, ge=0)  # weight of the cross-entropy with the labels, 1 − α
    weight: float = Field(0.1, ge=0)  # of the virtual teacher, α (unconfirmed)
    correct: float = Field(0.99, gt=0, le=1)  # the label's probability; 0.9 and more
    temperature: float = Field(20.0, gt=0)  # T
    student_temperature: float | None = Field(1.0, gt=0)  # none: T, as in the paper
    softening: Softening = "softmax"  # of the probabilities; "power": as a network's output, as in the paper

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train the student; a teacher that is given counts nothing."""
        return super().__call__(run, data=data, teacher=Teacher(()))

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the divergence from the virtual teacher."""
        loss = losses.virtual_teacher_kl(
            student.logits,
            batch.labels,
            self.temperature,
            correct=self.correct,
            student_temperature=self.student_temperature,
            softening=self.softening,
        )
        yield Term("virtual", loss)

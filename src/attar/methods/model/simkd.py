"""SimKD: the student's last map becomes the teacher's, and the teacher's own head reads it (arXiv 2203.14001)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from attar import losses, nets
from attar.artifacts import Student
from attar.artifacts.reused import ReusedHead, ReusedHeadStudent
from attar.data import Images
from attar.errors import RecipeError
from attar.nets.initialise import seeded
from attar.run import Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Term
from attar.train.taps import Seen
from attar.train.teacher import Teacher


@method
class ReusedClassifier(Objective):
    """Put the student in front of the teacher's head (Chen et al. 2022, arXiv 2203.14001).

    L = weight · mean (p(F_s) − F_t)² on the last maps; there is no loss on logits and none on labels. The projector p,
    three convolutions with batch norm and ReLU, stays: what comes out are the student's stages, p, and the teacher's
    head, frozen, with what stands before it. The student's map is first pooled, or repeated, to the size of the
    teacher's. It cannot be part of a sum.
    """

    alone: ClassVar = "replaces the student's head"

    hard: float = Field(0.0, ge=0)  # weight of the cross-entropy with the labels
    factor: int = Field(2, ge=1)  # the projector's width inside is the teacher's channels divided by it

    def __call__(self, run: Run, *, data: Images, teacher: Teacher) -> Student:
        """Train stages and projector, and return them with the teacher's head."""
        told = Teacher.of(teacher)
        spec = _spec(told)
        ready = told.ready(run, data, self.teaching)
        network = nets.fresh(self.student, data, run.rng("student"), device=run.device)
        with seeded(run.rng("projector")):
            module = ReusedHead(
                network, copy.deepcopy(ready), channels=data.channels, size=data.size, factor=self.factor
            )
        self.teach(run, module.to(run.device), data, ready)
        return ReusedHeadStudent(
            module.eval(), self.student, spec, channels=data.channels, size=data.size, classes=data.classes
        )

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the projected map and the teacher's last one."""
        return ["projector"], ["stage:-1"]

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance of the maps."""
        yield Term("simkd", losses.hint_distance(student.at("projector"), teacher.at("stage:-1")))


def _spec(teacher: Teacher) -> Any:
    """Return the spec of the one network that teaches.

    Raises:
        RecipeError: several teach, stored labels, or a module that no spec builds.
    """
    if len(teacher.members) != 1 or isinstance(teacher.members[0], nn.Module):
        raise RecipeError(
            "simkd takes the head of one teacher that a spec builds: name a network, or the folder of a trained one"
        )
    member = teacher.members[0]
    return member.net if isinstance(member, Student) else member

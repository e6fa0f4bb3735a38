"""BAN: a network teaches its successor, generation after generation (arXiv 1805.04770)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from attar import losses, nets
from attar.artifacts import Student
from attar.data import Images
from attar.run import Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Term
from attar.train.taps import Seen
from attar.train.teacher import Teacher


@method
class BornAgain(Objective):
    """Let each generation learn from the one before, all of one kind (Furlanello et al. 2018, arXiv 1805.04770).

    L = hard · CE + weight · T² · KL(σ(z_(k−1) / T) ‖ σ(z_k / T)). The first generation learns from the labels, or from
    a teacher where one is named; the last one comes out. Every generation is trained as long as a student of its own.
    The paper's mean over generations is an ensemble: `teacher=runs/a,runs/b` names one.
    """

    version: ClassVar = 2
    alone: ClassVar = "trains one generation behind the other"

    generations: int = Field(3, ge=1)  # trained after the first
    temperature: float = Field(1.0, gt=0)

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train all generations and return the last."""
        first = Objective(student=self.student, train=self.train)
        last: Any = teacher
        for generation in range(self.generations + 1):
            module = nets.fresh(self.student, data, run.rng("student", generation), device=run.device)
            objective = first if last is None else self
            objective.teach(run, module, data, last, loop=f"generation {generation}")
            last = module.eval().requires_grad_(False)
        return Student(last, self.student, data.channels, data.size, data.classes)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the divergence from the generation before."""
        yield Term("parent", losses.kl_divergence(student.logits, teacher.logits, self.temperature))

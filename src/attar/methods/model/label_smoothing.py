"""Label smoothing: the labels' probability is spread a little over all classes (arXiv 1512.00567)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from attar import losses
from attar.artifacts import Student
from attar.data import Images
from attar.run import Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Term
from attar.train.taps import Seen
from attar.train.teacher import Teacher


@method
class LabelSmoothing(Objective):
    """Train on smoothed labels (Szegedy et al. 2016, arXiv 1512.00567). There is no teacher.

    L = weight · CE((1 − ε) · one-hot + ε / K) + hard · CE. It is what a teacher that knows nothing but the labels says,
    so a teacher should beat it. `smoothing=0` is plain training.
    """

    hard: float = Field(0.0, ge=0)  # weight of the cross-entropy with the labels as they are
    smoothing: float = Field(0.1, ge=0, le=1)  # ε

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train the student; a teacher that is given counts nothing."""
        return super().__call__(run, data=data, teacher=Teacher(()))

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the cross-entropy."""
        yield Term("smoothed", losses.cross_entropy(student.logits, batch.labels, label_smoothing=self.smoothing))

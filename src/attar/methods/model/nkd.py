"""NKD: the label's share softly, and the other classes normalised among themselves (arXiv 2303.13005)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from attar import losses
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Term
from attar.train.taps import Seen


@method
class NormalisedKD(Objective):
    """Take the teacher's trust in the label, and its other classes normalised (Yang et al. 2023, arXiv 2303.13005).

    L = hard · CE − weight · (p_y log q_y + γ T² Σ_{k≠y} p̂_k log q̂_k), with p of the teacher and q of the student,
    p̂ and q̂ over the classes other than the label at temperature T.
    """

    gamma: float = Field(1.5, ge=0)  # weight of the other classes; 1 with DeiT students
    temperature: float = Field(1.0, gt=0)  # of the other classes

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield both shares."""
        loss = losses.normalised_kd(student.logits, teacher.logits, batch.labels, self.temperature, gamma=self.gamma)
        yield Term("nkd", loss)

"""CC: neighbours in a batch are wrong in unlike places (arXiv 1904.01802)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field
from torch import nn

from attar import losses
from attar.methods.model.places import ComparesEmbeddings
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import EMBEDDING, Seen


@method
class CorrelationCongruence(ComparesEmbeddings):
    """Keep the correlations between samples (Peng et al. 2019, arXiv 1904.01802, in the form used by RepDistiller).

    L = hard · CE + weight · mean_i Σ_d |δ_i| |δ_(i+1)|, with δ the student's embedding less the teacher's, each behind
    a linear layer of its own that is there for training alone. The order of the batch counts.
    """

    weight: float = Field(0.02, ge=0)
    dimensions: int = Field(128, ge=1)  # of both linear layers

    def build(self, setting: Setting) -> nn.Module:
        """Return the linear layers."""
        widths = {"student": setting.student_shapes[EMBEDDING], "teacher": setting.teacher_shapes[EMBEDDING]}
        return nn.ModuleDict({side: nn.Linear(size[-1], self.dimensions) for side, size in widths.items()})

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the products of the errors of neighbours."""
        mine, theirs = state["student"](student.embedding), state["teacher"](teacher.embedding)
        yield Term("cc", losses.correlation_congruence(mine, theirs))

"""DIST: the student keeps relations of the teacher's probabilities, not their values (arXiv 2205.10536)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from attar import losses
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Term
from attar.train.taps import Seen


@method
class CorrelationKD(Objective):
    """Correlate with the teacher's probabilities, by sample and by class (Huang et al. 2022, arXiv 2205.10536).

    L = hard · CE + weight · (inter · mean_i (1 − ρ of row i) + intra · mean_k (1 − ρ of column k)) with Pearson's ρ of
    softmax(z / T) over the classes of a sample, and over the batch for a class: a teacher that is much surer than the
    student can be does no harm. Official code of late multiplies by T² (`scaled`), the paper does not.
    """

    weight: float = Field(2.0, ge=0)
    inter: float = Field(1.0, ge=0)  # of the relation between classes
    intra: float = Field(1.0, ge=0)  # of the relation between samples
    temperature: float = Field(4.0, gt=0)  # on CIFAR (unconfirmed); on ImageNet 1
    scaled: bool = False  # times T²

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield one minus the correlations."""
        loss = losses.correlation_distance(
            student.logits,
            teacher.logits,
            self.temperature,
            inter=self.inter,
            intra=self.intra,
            scale_by_temperature_squared=self.scaled,
        )
        yield Term("dist", loss)

"""DKD: knowledge of the target class and of the others, weighted apart (arXiv 2203.08679)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from attar import losses
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Term
from attar.train.taps import Seen


@method
class DecoupledKD(Objective):
    """Weight the target class's share of KD apart from that of the others (Zhao et al. 2022, arXiv 2203.08679).

    L = hard · CE + w · T² · (α · TCKD + β · NCKD), with w growing over the first epochs. KD is the special case
    α = 1 and β = 1 − p_t(y), which keeps the other classes quiet just where the teacher is sure.
    """

    version: ClassVar = 2

    alpha: float = Field(1.0, ge=0)  # weight of the target class
    beta: float = Field(8.0, ge=0)  # weight of the other classes; 6 for VGG and WRN pairs, 2 for resnet56 → 20
    temperature: float = Field(4.0, gt=0)
    warmup_share: float = Field(20 / 240, ge=0, le=1)  # of the epochs, until the term has its whole weight

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the decoupled divergence."""
        loss = losses.decoupled_kl(
            student.logits, teacher.logits, batch.labels, self.temperature, alpha=self.alpha, beta=self.beta
        )
        yield Term("dkd", loss, progress.ramp(self.warmup_share))

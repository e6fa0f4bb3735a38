"""KD: the student matches the teacher's softened probabilities (arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from attar import losses
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Term
from attar.train.taps import Seen


@method
class KnowledgeDistillation(Objective):
    """Match the teacher's probabilities at a temperature, beside the labels (Hinton et al. 2015, arXiv 1503.02531).

    L = hard · CE + weight · T² · KL(σ(z_t / T) ‖ σ(z_s / T)). With `standardise`, both networks' logits are z-scores
    first (Sun et al. 2024, arXiv 2403.01427, with temperature 2, weight 9 and hard 0.1); the labels see raw logits.
    """

    hard: float = Field(0.1, ge=0)  # weight of the cross-entropy with the labels; on ImageNet 0.5
    weight: float = Field(0.9, ge=0)  # of the teacher; on ImageNet 0.5
    temperature: float = Field(4.0, gt=0)  # on ImageNet 1
    standardise: bool = False  # logit standardisation

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the divergence."""
        mine, theirs = student.logits, teacher.logits
        if self.standardise:
            mine, theirs = losses.standardised_logits(mine), losses.standardised_logits(theirs)
        yield Term("kd", losses.kl_divergence(mine, theirs, self.temperature))

"""ReviewKD: what the student's deep stages know helps its shallow ones to guess the teacher's (arXiv 2104.09044)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from attar import losses
from attar.methods.model.fusion import FusionChain
from attar.methods.model.places import ComparesStages, before_activation, compared, total
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import EMBEDDING, Seen


@method
class KnowledgeReview(ComparesStages):
    """Guess every stage of the teacher from that stage and all deeper ones (Chen et al. 2021, arXiv 2104.09044).

    L = hard · CE + w · Σ_levels HCL(guess, F_t), with w growing to `weight` over the first epochs. From the embedding
    upwards, a chain of blocks for training alone weighs each stage of the student against what came from below; HCL
    compares maps at full size and pooled to 4, 2 and 1. The teacher's maps are those before the activation. `pairs`
    name the stages, shallow to deep; the embeddings follow as the last level.
    """

    version: ClassVar = 2

    weight: float = Field(1.0, ge=0)  # of each pair: 5 for resnet32x4 → 8x4, 8 for ResNet-50 → MobileNet on ImageNet
    warmup_share: float = Field(20 / 240, ge=0, le=1)  # of the epochs, until the term has its whole weight
    widest: int = Field(512, ge=1)  # channels passed up the chain, at most

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the stages, the teacher's before their activation, and the embeddings."""
        mine, theirs = super().taps(student, teacher)
        if not self.pairs and teacher is not None:
            theirs = before_activation(teacher, theirs)
        return [*mine, EMBEDDING], [*theirs, EMBEDDING]

    def build(self, setting: Setting) -> nn.Module:
        """Return the chain, whose blocks normalise embeddings over the batch."""
        setting.refuse_lone_image()
        student, teacher = zip(*self.sizes(setting), strict=True)
        return FusionChain(student, teacher, widest=self.widest)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance of the guesses, summed over levels."""
        mine, theirs = zip(*compared(student, teacher), strict=True)
        distances = [
            losses.hierarchical_context_distance(guess, told.view_as(guess))
            for guess, told in zip(state(mine), theirs, strict=True)
        ]
        yield Term("review", total(distances), progress.ramp(self.warmup_share))

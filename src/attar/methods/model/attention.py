"""AT: the student looks where the teacher looks (arXiv 1612.03928)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import nn

from attar import losses
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Term
from attar.train.taps import Seen, stage_pairs


@method
class AttentionTransfer(Objective):
    """Match maps of where each stage is active (Zagoruyko & Komodakis 2017, arXiv 1612.03928).

    L = hard · CE + weight · Σ_stages mean (a_s − a_t)², with a the channel mean of |F|^p, flattened to length 1; the
    larger map is average-pooled to the smaller.
    """

    weight: float = Field(1000.0, ge=0)  # belongs to the mean over places that `form="code"` takes
    power: float = Field(2.0, ge=1)
    form: Literal["code", "paper"] = "code"
    pairs: tuple[str, ...] = ()  # places "student=teacher"; none: the last stages, as many as both have

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the stages."""
        return stage_pairs(student, teacher, self.pairs)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance of the attention maps, summed over stages."""
        pairs = zip(student.paths, teacher.paths, strict=True)
        distances = [
            losses.attention_distance(student.at(mine), teacher.at(theirs), power=self.power, form=self.form)
            for mine, theirs in pairs
        ]
        yield Term("attention", sum(distances[1:], distances[0]))

"""NST: the student's neurons select what the teacher's select (arXiv 1707.01219)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from attar import losses
from attar.methods.model.places import ComparesStages, compared, total
from attar.spec import method
from attar.train.objective import Batch, Progress, Term
from attar.train.taps import Seen


@method
class NeuronSelectivity(ComparesStages):
    """Match the distribution of where channels are active (Huang & Wang 2017, arXiv 1707.01219).

    L = hard · CE + weight · Σ_stages MMD² between the channels' maps, each of length 1, with the kernel ⟨a, b⟩².
    Channels may differ; the larger map is average-pooled to the smaller.
    """

    weight: float = Field(50.0, ge=0)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the discrepancy, summed over stages."""
        pairs = compared(student, teacher)
        yield Term("nst", total([losses.selectivity_distance(mine, theirs) for mine, theirs in pairs]))

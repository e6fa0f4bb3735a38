"""SP: samples that excite the teacher alike excite the student alike (arXiv 1907.09682)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from attar import losses
from attar.methods.model.places import ComparesStages, compared, total
from attar.spec import method
from attar.train.objective import Batch, Progress, Term
from attar.train.taps import Seen


@method
class SimilarityPreserving(ComparesStages):
    """Keep the similarities of samples at the last stage (Tung & Mori 2019, arXiv 1907.09682).

    L = hard · CE + weight · Σ_places ‖G_s − G_t‖²_F / n², with G the products of the flattened maps of a batch, rows of
    length 1. Channels and sizes may differ.
    """

    last: ClassVar = 1

    weight: float = Field(3000.0, ge=0)  # belongs to the division by n²

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance of the similarities."""
        pairs = compared(student, teacher)
        yield Term("sp", total([losses.similarity_distance(mine, theirs) for mine, theirs in pairs]))

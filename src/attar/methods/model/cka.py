"""CKA: the features of a batch are the teacher's up to rotation and scale (arXiv 1905.00414)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from attar import losses
from attar.methods.model.places import ComparesEmbeddings
from attar.spec import method
from attar.train.objective import Batch, Progress, Term
from attar.train.taps import Seen


@method
class KernelAlignment(ComparesEmbeddings):
    """Raise the linear CKA of the embeddings (Kornblith et al. 2019, arXiv 1905.00414).

    L = hard · CE + weight · (1 − CKA), which asks for the teacher's geometry of a batch and not for its axes; widths
    may differ. With fewer samples a batch than features CKA is near 1 for anything, so batches should be large.
    """

    weight: float = Field(1.0, ge=0)  # no library has a default

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield one minus the alignment."""
        yield Term("cka", 1.0 - losses.linear_cka(student.embedding, teacher.embedding))

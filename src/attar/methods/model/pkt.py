"""PKT: the student gives samples the same probabilities of being neighbours (arXiv 1803.10837)."""

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
class ProbabilisticTransfer(ComparesEmbeddings):
    """Match who is probably near whom (Passalis & Tefas 2018, arXiv 1803.10837).

    L = hard · CE + weight · mean_ij P_ij log (P_ij / Q_ij), with P (teacher) and Q (student) the cosines of the
    embeddings of a batch, moved to [0, 1] and divided by the sum of their row.
    """

    weight: float = Field(30000.0, ge=0)  # belongs to the mean over pairs

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the divergence of neighbourhoods."""
        yield Term("pkt", losses.probability_transfer(student.embedding, teacher.embedding))

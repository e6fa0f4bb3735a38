"""RKD: distances and angles between samples are as in the teacher (arXiv 1904.05068)."""

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
class RelationalKD(ComparesEmbeddings):
    """Keep distances and angles between the samples of a batch (Park et al. 2019, arXiv 1904.05068).

    L = hard · CE + weight · (distance · smooth L1 of pairwise distances, each network's divided by their mean,
    + angle · smooth L1 of the cosines of all triples), on the embeddings. Widths may differ.
    """

    distance: float = Field(25.0, ge=0)  # weight of the distances between pairs
    angle: float = Field(50.0, ge=0)  # weight of the angles between triples; memory grows with batch³

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield both relations."""
        mine, theirs = student.embedding, teacher.embedding
        if self.distance:
            yield Term("distance", losses.relational_distance(mine, theirs), self.distance)
        if self.angle:
            yield Term("angle", losses.relational_angle(mine, theirs), self.angle)

"""ICKD: the student's channels relate to each other as the teacher's do (arXiv 2202.03680)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from attar import losses
from attar.methods.model.places import ComparesStages, compared, total
from attar.methods.model.regressors import connector
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import Seen


@method
class ChannelCorrelation(ComparesStages):
    """Keep the correlations between channels at the last stage (Liu et al. 2021, arXiv 2202.03680).

    L = hard · CE + weight · ‖E_s − E_t‖²_F / C, with E the products of a sample's channels, rows of length 1. A 1×1
    convolution with batch norm, there for training alone, brings the student to the teacher's C channels.
    """

    last: ClassVar = 1

    weight: float = Field(2.5, ge=0)  # unconfirmed

    def build(self, setting: Setting) -> nn.Module:
        """Return a connector for each pair of places."""
        return nn.ModuleList(connector(mine, theirs) for mine, theirs in self.sizes(setting))

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance of the correlations."""
        pairs = zip(state, compared(student, teacher), strict=True)
        yield Term(
            "ickd",
            total([losses.channel_correlation_distance(connect(mine), theirs) for connect, (mine, theirs) in pairs]),
        )

"""AB: the student's neurons fire where the teacher's do, whatever their strength (arXiv 1811.03233)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field
from torch import nn

from attar import losses
from attar.methods.model.initial import InitialisesFeatures
from attar.methods.model.places import before_activation, compared, total
from attar.methods.model.regressors import connector
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import Seen


@method
class ActivationBoundaries(InitialisesFeatures):
    """Take over the boundaries of activation, then learn the labels (Heo et al. 2019, arXiv 1811.03233).

    First stage: weight · Σ_stages 2^(l − L) · Σ max(0, μ + s)² where the teacher is silent and max(0, μ − s)² where it
    fires, on maps before the ReLU, the student's behind a 1×1 convolution with batch norm that is there for training
    alone. Second stage: hard · CE. The larger map is average-pooled to the smaller.
    """

    weight: float = Field(3e-3, ge=0)
    margin: float = Field(1.0, gt=0)  # μ

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the stages before their activation."""
        mine, theirs = super().taps(student, teacher)
        if self.pairs or teacher is None:
            return mine, theirs
        return before_activation(student, mine), before_activation(teacher, theirs)

    def build(self, setting: Setting) -> nn.Module:
        """Return a connector for each pair of places."""
        return nn.ModuleList(connector(mine, theirs) for mine, theirs in self.sizes(setting))

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance of the boundaries; each stage weighs half of the one behind it."""
        values = []
        for number, (mine, theirs) in enumerate(compared(student, teacher)):
            maps = losses.same_places(state[number](mine), theirs)
            values.append(losses.boundary_distance(*maps, margin=self.margin) * 2.0 ** (number + 1 - len(state)))
        yield Term("boundaries", total(values))

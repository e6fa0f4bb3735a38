"""FSP: the student solves in the same steps, seen as products between the channels of two stages (Yim et al. 2017)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import Field
from torch import nn

from attar import losses
from attar.errors import RecipeError
from attar.methods.model.initial import InitialisesFeatures
from attar.methods.model.places import compared, total
from attar.methods.model.regressors import both_maps
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import Seen


@method
class SolutionFlow(InitialisesFeatures):
    """Take over the flow between stages, then learn the labels (Yim et al. 2017, "A Gift from Knowledge Distillation").

    First stage: weight · Σ mean (G_s − G_t)², with G the products of the channels of a stage and the next, divided by
    their places. Second stage: hard · CE. Student and teacher need equally many channels at each place. The benchmark's
    code also compares the flow from the first convolution to the first stage: name such places with `pairs`.
    """

    weight: float = Field(50.0, ge=0)

    def build(self, setting: Setting) -> nn.Module:
        """Return nothing.

        Raises:
            RecipeError: fewer than two places, or channels that differ.
        """
        sizes = self.sizes(setting)
        if len(sizes) < 2:
            raise RecipeError("fsp compares what happens between two stages; name two places or more with pairs")
        for size in sizes:
            both_maps(*size)
        if any(mine[0] != theirs[0] for mine, theirs in sizes):
            found = ", ".join(f"{mine[0]} and {theirs[0]}" for mine, theirs in sizes)
            raise RecipeError(
                f"fsp needs as many channels in the student as in the teacher, and they have {found}; take networks "
                "that differ in depth alone, or attention"
            )
        return nn.Module()

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance of the flows."""
        steps = itertools.pairwise(compared(student, teacher))
        flows = [losses.flow_distance((mine, next_), (theirs, told)) for (mine, theirs), (next_, told) in steps]
        yield Term("flow", total(flows))

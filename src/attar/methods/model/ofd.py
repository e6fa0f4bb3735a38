"""OFD: the student meets the teacher's maps before their activation, where they matter (arXiv 1904.01866)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import nn

from attar import losses
from attar.methods.model.places import ComparesStages, before_activation, compared, last_norm, total
from attar.methods.model.regressors import connector
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import Seen


@method
class FeatureOverhaul(ComparesStages):
    """Match maps before the ReLU, with a margin for what it silences (Heo et al. 2019, arXiv 1904.01866).

    L = hard · CE + weight · Σ_stages 2^(l − L) · ‖c(F_s) − max(F_t, m)‖², summed over channels and places, and left out
    where the teacher is silent and the student at or below the margin m. c is a 1×1 convolution with batch norm for
    training alone; m = E[x | x < 0] of the Gaussian that the teacher's last batch norm of the stage describes, a number
    a channel. The larger map is average-pooled to the smaller. `pairs` name places before the activation.
    """

    weight: float = Field(1e-3, ge=0)  # 1e-4 for ResNet-50 → MobileNet on ImageNet

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the stages before their activation."""
        mine, theirs = super().taps(student, teacher)
        if self.pairs or teacher is None:
            return mine, theirs
        return before_activation(student, mine), before_activation(teacher, theirs)

    def build(self, setting: Setting) -> nn.Module:
        """Return connectors and margins."""
        assert setting.teacher is not None  # the places of its features were found
        _, paths = self.taps(setting.student, setting.teacher)
        state = nn.Module()
        state.connectors = nn.ModuleList(connector(mine, theirs) for mine, theirs in self.sizes(setting))
        for number, (path, (_, theirs)) in enumerate(zip(paths, self.sizes(setting), strict=True)):
            norm = last_norm(setting.teacher, path, theirs[0])
            with torch.no_grad():
                state.register_buffer(f"margins_{number}", losses.negative_margins(norm.bias, norm.weight.abs()))
        return state

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the partial distances; each stage weighs half of the one behind it."""
        pairs = compared(student, teacher)
        values = []
        for number, (mine, theirs) in enumerate(pairs):
            maps = losses.same_places(state.connectors[number](mine), theirs)
            distance = losses.partial_distance(*maps, state.get_buffer(f"margins_{number}"))
            values.append(distance * 2.0 ** (number + 1 - len(pairs)))
        yield Term("ofd", total(values))

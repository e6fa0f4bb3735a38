"""FitNet: the student's middle guesses the teacher's (arXiv 1412.6550)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from attar import losses
from attar.methods.model.places import ComparesStages, compared, total
from attar.methods.model.regressors import hint_regressor
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import Seen


@method
class FitNet(ComparesStages):
    """Regress the teacher's map in the middle from the student's (Romero et al. 2015, arXiv 1412.6550).

    L = hard · CE + weight · mean (r(F_s) − F_t)², with a regressor r that is there for training alone. Both terms are
    trained together, as in the libraries whose weight is in use; the paper trains the hint in a first stage.
    """

    version: ClassVar = 2  # 2: the teacher's place is as deep as the student's, where it has other stages

    weight: float = Field(100.0, ge=0)
    pairs: tuple[str, ...] = ()  # places "student=teacher"; none: see `middle`

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the places of the hint."""
        mine, theirs = super().taps(student, teacher)
        if self.pairs:
            return mine, theirs
        guided, hint = middle(*(len(getattr(module, "stages", ())) for module in (student, teacher)))
        return [guided], [hint]

    def build(self, setting: Setting) -> nn.Module:
        """Return a regressor for each pair of places."""
        return nn.ModuleList(hint_regressor(mine, theirs) for mine, theirs in self.sizes(setting))

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance of the hints."""
        pairs = zip(state, compared(student, teacher), strict=True)
        yield Term("hint", total([losses.hint_distance(regress(mine), theirs) for regress, (mine, theirs) in pairs]))


def middle(student: int, teacher: int) -> tuple[str, str]:
    """Return the place of the hint in networks of so many stages: the student's last but one, the teacher's as deep.

    As deep is the same share of the stages, rounded up; for equally many it is the last but one of both.

    >>> middle(3, 3), middle(3, 12), middle(4, 3), middle(1, 4)
    (('stage:-2', 'stage:-2'), ('stage:-2', 'stage:-5'), ('stage:-2', 'stage:-1'), ('stage:-1', 'stage:-1'))
    """
    number = max(student - 1, 1)
    return f"stage:{number - student - 1}", f"stage:{math.ceil(teacher * number / student) - teacher - 1}"

"""VID: the student's maps tell as much as they can about the teacher's (arXiv 1904.05835)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field
from torch import nn

from attar import losses
from attar.methods.model.places import ComparesStages, compared, total
from attar.methods.model.regressors import Guess
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import Seen


@method
class VariationalInformation(ComparesStages):
    """Maximise a bound of the mutual information of maps (Ahn et al. 2019, arXiv 1904.05835).

    L = hard · CE + weight · Σ_stages mean ½ [(μ(F_s) − F_t)² / v + log v]: a Gaussian with learned mean μ and a learned
    variance v for each channel guesses the teacher's map, and channels that cannot be guessed count less. The larger
    map is average-pooled to the smaller.
    """

    weight: float = Field(1.0, ge=0)
    variance: float = Field(5.0, gt=0)  # what v starts from
    epsilon: float = Field(1e-5, gt=0)  # what v does not fall below

    def build(self, setting: Setting) -> nn.Module:
        """Return a guess for each pair of places."""
        return nn.ModuleList(
            Guess(mine, theirs, variance=self.variance, epsilon=self.epsilon) for mine, theirs in self.sizes(setting)
        )

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the negative log-likelihood of the teacher's maps, less a constant, summed over stages."""
        values = []
        for guess, pair in zip(state, compared(student, teacher), strict=True):
            mine, theirs = losses.same_places(*pair)
            values.append(losses.variational_distance(guess(mine), theirs, guess.raw_variances, epsilon=self.epsilon))
        yield Term("vid", total(values))

"""Claims whose teachers are trained once: what tuning validates on is set apart from them in the verdict as well."""

from __future__ import annotations

from attar.claims.claim import Claim
from attar.data import Images
from attar.data.sources import Splits
from attar.run import Run


class TaughtOnce(Claim):
    """A claim with one validation part for all tuning seeds; teachers see neither it nor the test set in any phase.

    So tuning and verdict share the stages of teachers. Students of the verdict may see the whole training set.
    """

    def splits(self, run: Run) -> Splits:
        """Return the data: in tuning, `test` is the validation part of the training set and `train` the rest."""
        whole = self.load(self.data_source)
        return whole if self.phase == "verdict" else whole.tuning()

    def taught(self) -> Images:
        """Return the images that teachers may see in either phase: the training set without the validation part."""
        return self.load(self.data_source).tuning().train

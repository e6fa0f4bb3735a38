"""Objectives of two stages: features are matched first, then the labels alone are learned."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from attar.data import Images
from attar.errors import RecipeError
from attar.methods.model.places import ComparesStages
from attar.run import Run
from attar.spec import method
from attar.train.objective import Objective, StudentTraining


@method
class InitialisesFeatures(ComparesStages):
    """An objective whose terms train a first stage, at a constant rate; in the second there are labels alone.

    In a sum, its terms are trained beside the others from the first step to the last.
    """

    version: ClassVar = 2

    initial: float = Field(30 / 240, gt=0)  # steps of the first stage, as a share of those of the second

    def teach(self, run: Run, module: nn.Module, data: Images, teacher: Any = None, loop: str = "distil") -> nn.Module:
        """Train a module in place, in two loops, and return what the terms needed."""
        if not self.hard:
            raise RecipeError(
                "behind its first stage the student learns from labels alone, so 'hard' is above 0, not 0"
            )
        short = dataclasses.replace(shortened(self.train, self.initial, len(data)), schedule=None)
        first = dataclasses.replace(self, hard=0.0, train=short)
        state = Objective.teach(first, run, module, data, teacher, f"{loop}, features")
        Objective(student=self.student, train=self.train, hard=self.hard).teach(run, module, data, None, loop)
        return state


def shortened(train: StudentTraining, share: float, count: int) -> StudentTraining:
    """Return the training with a share of its steps, at least one."""
    return dataclasses.replace(train, steps=max(1, round(share * train.total(count))))

"""PS-KD: a student learns from what it said itself an epoch ago, more and more (arXiv 2006.12000)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from attar import losses
from attar.artifacts import Student
from attar.data import Images
from attar.errors import RecipeError
from attar.run import Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, Term
from attar.train.taps import Seen
from attar.train.teacher import Teacher

_SMALL: Any = Objective.presets["small"]
_BY_PASSES = {name: value for name, value in _SMALL["train"].items() if name != "steps"}  # the method counts epochs


@method
class ProgressiveSelfKD(Objective):
    """Refine the labels by the student's own last epoch (Kim et al. 2021, arXiv 2006.12000). There is no teacher.

    L = weight · CE((1 − α_e) y + α_e p_{e−1}(x)) + hard · CE, with α_e = share · e / E in epoch e of E, from 1, and
    p_{e−1}(x) the probabilities that the student gave x when it was trained on x in the epoch before; in the first
    epoch y. They are kept for every image, as authors' code does: this asks for no second forward, and as a part of the
    state they are in each checkpoint. It takes 4 bytes an image and class.
    """

    version: ClassVar = 1
    presets: ClassVar = {"small": {**_SMALL, "train": {**_BY_PASSES, "epochs": 10}}}

    hard: float = Field(0.0, ge=0)  # weight of the cross-entropy with the labels as they are
    share: float = Field(0.8, ge=0, le=1)  # α_E, of the student's own word in the last epoch

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train the student; a teacher that is given counts nothing."""
        return super().__call__(run, data=data, teacher=Teacher(()))

    def build(self, setting: Setting) -> nn.Module:
        """Return the memory of what was said of each image, which is its label at first."""
        state = nn.Module()
        state.register_buffer("past", nn.functional.one_hot(setting.data.labels, setting.data.num_classes).float())
        return state

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield both parts of the cross-entropy, which is linear in its target.

        Raises:
            RecipeError: the training ends before an image is seen twice.
        """
        if progress.steps <= progress.per_epoch:
            raise RecipeError(
                f"{progress.steps} steps see no image twice, since an epoch has {progress.per_epoch}, so there is no "
                "epoch before to learn from; raise train.steps, or count epochs: train.steps=null train.epochs=10"
            )
        share = self.share * progress.ramp(1.0)
        yield Term("labels", nn.functional.cross_entropy(student.logits, batch.labels), 1 - share)
        yield Term("past", losses.soft_cross_entropy(student.logits, state.past[batch.indices]), share)

    def after(self, state: Any, student: Seen, teacher: Seen, batch: Batch) -> None:
        """Keep what the student said of the batch's images."""
        state.past[batch.indices] = student.logits.detach().float().softmax(1)

"""BYOT: a student's last layers teach exits on its earlier ones (arXiv 1905.08094)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import nn

from attar import losses
from attar.artifacts import Student
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.model.exits import exit_of, staged
from attar.run import Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, Term
from attar.train.taps import EMBEDDING, Seen, read
from attar.train.teacher import Teacher

_LAST = "stage:-1"


@method
class BeYourOwnTeacher(Objective):
    """Teach exits on the student's earlier stages by its last one (Zhang et al. 2019, 1905.08094). There is no teacher.

    L = hard · CE(z) + weight · Σ_i [labels · CE(z_i) + kd · T² · KL(sg σ(z / T) ‖ σ(z_i / T)) + features · mean (F_i −
    sg F)²] over the exits i, with F the student's last map, averaged over its places, and F_i what an exit's linear
    layer reads. What leads from a stage to its exit projects the map to the width of F: separable convolutions as far
    down as the stages behind reduce it, in the place of the authors' bottlenecks. The student answers by its last
    stage, and exits do not remain.
    """

    hard: float = Field(0.9, ge=0)  # weight of the cross-entropy of the last exit, the student's own, 1 − α
    labels: float = Field(0.9, ge=0)  # of that of each earlier exit, 1 − α
    kd: float = Field(0.1, ge=0)  # of the last exit's logits, α
    features: float = Field(0.066, ge=0)  # of its features; in code 1e-6 of a sum over 128 images and 512 channels
    temperature: float = Field(3.0, gt=0)  # T
    stages: tuple[int, ...] = (1, 2, 3)  # which of four evenly spaced stages have an exit; the last has the student's

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train the student; a teacher that is given counts nothing."""
        return super().__call__(run, data=data, teacher=Teacher(()))

    def early(self, student: nn.Module) -> list[tuple[str, int]]:
        """Return the places of the stages with an exit, each with how many of four come behind it.

        Raises:
            RecipeError: the last stage is the only one of them.
        """
        given = staged(student, self.stages)
        found = [(path.replace("stages.", "stage:"), behind) for path, behind in given if behind]  # tokens as maps
        if not found:
            raise RecipeError(
                f"{type(student).__name__} has no stage of {list(self.stages)} before its last, so there is nothing to "
                "teach; take a deeper student, such as student.depth=3, or other stages"
            )
        return found

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the stages with an exit, and the last."""
        return [*(path for path, _ in self.early(student)), _LAST], ()

    def build(self, setting: Setting) -> nn.Module:
        """Return the exits, whose features are as wide as the student's last."""
        shapes, classes = setting.student_shapes, setting.data.num_classes
        state = nn.Module()
        state.exits = nn.ModuleList(
            exit_of(shapes[path], behind, shapes[_LAST][0], classes) for path, behind in self.early(setting.student)
        )
        return state

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield what the exits learn from labels, from the last logits and from the last features, each a sum."""
        last, wanted = student.logits.detach(), student.at(_LAST).detach()
        wanted = wanted.flatten(2).mean(2) if wanted.dim() > 2 else wanted
        pairs = zip(state.exits, student.paths[:-1], strict=True)
        found = [read(leave, student.at(path), [EMBEDDING]) for leave, path in pairs]
        each = [nn.functional.cross_entropy(logits, batch.labels) for logits, _ in found]
        yield Term("exits", torch.stack(each).sum(), self.labels)
        each = [losses.kl_divergence(logits, last, self.temperature) for logits, _ in found]
        yield Term("last logits", torch.stack(each).sum(), self.kd)
        each = [losses.hint_distance(inside[EMBEDDING], wanted) for _, inside in found]
        yield Term("last features", torch.stack(each).sum(), self.features)

"""Which places of student and teacher the feature objectives compare: embeddings, or stages by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.spec import method
from attar.train.objective import Objective, Setting
from attar.train.taps import EMBEDDING, Seen, place, stage_pairs


@method
class ComparesEmbeddings(Objective):
    """An objective that reads what the last linear layers of both networks read."""

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return both embeddings."""
        return [EMBEDDING], [EMBEDDING]


@method
class ComparesStages(Objective):
    """An objective that reads pairs of places, one of the student and one of the teacher."""

    last: ClassVar[int | None] = None  # how many of the last stages are compared where none are named; none: all

    pairs: tuple[str, ...] = ()  # places "student=teacher"; none: the last stages, as many as both have

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the stages, or the places that `pairs` names."""
        mine, theirs = stage_pairs(student, teacher, self.pairs)
        if self.last is None or self.pairs:
            return mine, theirs
        return mine[-self.last :], theirs[-self.last :]

    def sizes(self, setting: Setting) -> list[tuple[torch.Size, torch.Size]]:
        """Return the shapes of one sample at each pair of places."""
        pairs = zip(*self.taps(setting.student, setting.teacher), strict=True)
        return [(setting.student_shapes[mine], setting.teacher_shapes[theirs]) for mine, theirs in pairs]


def compared(student: Seen, teacher: Seen) -> list[tuple[Tensor, Tensor]]:
    """Return what passed through each pair of places."""
    return [(student.at(mine), teacher.at(theirs)) for mine, theirs in zip(student.paths, teacher.paths, strict=True)]


def total(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of one loss a stage."""
    return torch.stack(list(values)).sum()


def before_activation(module: nn.Module, stages: Sequence[str]) -> list[str]:
    """Return where the maps of stages are before their last activation; the stage itself where it ends linearly.

    Raises:
        RecipeError: the network does not say what its activations are.
    """
    known = getattr(module, "activations", None)
    if known is None:
        raise RecipeError(
            f"{type(module).__name__} does not say which layers activate its stages; name places before the activation "
            "with pairs=STUDENT=TEACHER, such as stages.1.2:input=layer2.1.relu:input"
        )
    numbers = [int(stage.removeprefix("stage:")) for stage in stages]
    return [stage if known[k] is None else f"{known[k]}:input" for k, stage in zip(numbers, stages, strict=True)]


def last_norm(module: nn.Module, path: str, channels: int) -> nn.BatchNorm2d:
    """Return the last batch norm of so many channels on the way to a place, shortcuts left out.

    Raises:
        RecipeError: there is none.
    """
    end, ingoing = place(module, path)
    found: nn.BatchNorm2d | None = None
    for name, layer in module.named_modules():
        if layer is end and ingoing:
            break
        if isinstance(layer, nn.BatchNorm2d) and layer.num_features == channels and "shortcut" not in name:
            found = layer
        if layer is end:
            inside = [inner for inner in end.modules() if isinstance(inner, nn.BatchNorm2d)]
            found = next((norm for norm in reversed(inside) if norm.num_features == channels), found)
            break
    if found is None or not found.affine:
        raise RecipeError(
            f"no batch norm of {channels} channels with scale and shift stands before '{path}' of "
            f"{type(module).__name__}; this objective reads its margins from one, so take a teacher with batch norm"
        )
    return found

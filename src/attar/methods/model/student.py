"""A student of several objectives at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from torch import nn

from attar.errors import RecipeError
from attar.run import Learner
from attar.spec import AnyMethod, method
from attar.train.objective import Batch, Objective, Progress, Setting, Term
from attar.train.taps import Seen


def parts(told: Any) -> Any:
    """Read "dkd+attention:1000": ids of objectives joined by +, each with its weight behind a colon if not its own.

    Raises:
        RecipeError: a weight that is no number.
    """
    if isinstance(told, Objective | Mapping):
        return (told,)
    if not isinstance(told, str):
        return told
    return tuple(_part(part.strip()) for part in told.split("+"))


def _part(told: str) -> dict[str, Any]:
    id, colon, weight = told.partition(":")
    if not colon:
        return {"kind": id}
    try:
        return {"kind": id, "weight": float(weight)}
    except ValueError:
        raise RecipeError(f"'{told}': the weight behind the colon is a number, such as {id}:1000") from None


@method
class TrainStudent(Objective):
    """Train a student on a sum of objectives, such as `objective=dkd+attention:1000+crd:0.8`.

    All read one forward of the student and one of the teacher. The labels have the weight `hard`, whatever the parts
    give them; a part's own `student`, `train` and `teaching` do not count.
    """

    version: ClassVar = 1

    objective: Annotated[tuple[AnyMethod, ...], BeforeValidator(parts)] = Field(
        "kd", validate_default=True
    )  # the parts

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the places that any part reads.

        Raises:
            RecipeError: two parts change what is shown, or one is no part of a sum.
        """
        for part in self.objective:
            if part.alone and len(self.objective) > 1:
                name = type(part).__name__
                raise RecipeError(f"{name} {part.alone}, so it is no part of a sum; run it alone")
        changing = [type(part).__name__ for part in self.objective if type(part).views is not Objective.views]
        if len(changing) > 1:
            raise RecipeError(
                f"{' and '.join(changing)} each change what student and teacher are shown; take one of them"
            )
        each = [part.taps(student, teacher) for part in self.objective]
        mine, theirs = (list(dict.fromkeys(path for pair in each for path in pair[side])) for side in (0, 1))
        return mine, theirs

    def build(self, setting: Setting) -> nn.Module:
        """Return what the parts need, one behind the other."""
        return _States([(part.build(setting), part.taps(setting.student, setting.teacher)) for part in self.objective])

    def learners(self, state: Any) -> Sequence[Learner]:
        """Return the learners of all parts."""
        return [learner for part, own in zip(self.objective, state.own, strict=True) for learner in part.learners(own)]

    def views(self, state: Any, batch: Batch, student: nn.Module) -> Batch:
        """Let the part that changes what is shown do so."""
        for part, own in zip(self.objective, state.own, strict=True):
            batch = part.views(own, batch, student)
        return batch

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the terms of all parts, each with its weight."""
        for part, own, (mine, theirs) in zip(self.objective, state.own, state.paths, strict=True):
            yield from part.weighed(own, progress, student.only(mine), teacher.only(theirs), batch)

    def target(self, student: Seen, batch: Batch) -> Term:
        """Return what the labels give, as the part that changes what is shown reads them."""
        for part in self.objective:
            if type(part).target is not Objective.target:
                found: Term = dataclasses.replace(part, hard=self.hard).target(student, batch)
                return found
        return super().target(student, batch)

    def after(self, state: Any, student: Seen, teacher: Seen, batch: Batch) -> None:
        """Let each part change what its next step will read."""
        for part, own, (mine, theirs) in zip(self.objective, state.own, state.paths, strict=True):
            part.after(own, student.only(mine), teacher.only(theirs), batch)


class _States(nn.Module):
    def __init__(self, made: Sequence[tuple[nn.Module, tuple[Sequence[str], Sequence[str]]]]) -> None:
        super().__init__()
        self.own = nn.ModuleList(state for state, _ in made)
        self.paths = [paths for _, paths in made]

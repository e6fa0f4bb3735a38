"""FYI: show a network every synthetic image together with its mirror image."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

from pydantic import field_validator

from attar.artifacts import DistilledSet
from attar.artifacts.trajectories import Trajectories
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.data.dm import DistributionMatching
from attar.run import Run
from attar.spec import AnyMethod, fields, inputs, method

ALWAYS_FLIP = {"dsa": "dsa-always-flip"}  # flip leaves the choice of one operation, and comes with p = 0.5 before it


@method
class MirroredBatches:
    """Run any method that makes images with mirrored synthetic batches (Son et al. 2024, arXiv 2407.08113).

    Matching tends to put the left and the right of things into every image; where mirror images come for free, half of
    that is to spare. Every use of a synthetic batch in `base` is of (cat[x, mirrored x], cat[y, y]), before
    augmentation, and flips leave DSA's choice and come always. Trajectory matching takes half as many images a step, so
    that its batch stays, and its experts flip always, too. As many images are stored as without. For pictures whose
    mirror image is as likely: not for digits and letters.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": {}}

    base: AnyMethod = DistributionMatching()  # a method's id; its own fields are base.ipc and so on
    always_flip: bool = True  # for base.augment=dsa; the paper does the same to whatever it is compared with

    @field_validator("base")
    @classmethod
    def _mirrors(cls, base: Any) -> Any:
        if "mirror" not in {field.name for field in fields(base)}:
            raise ValueError(
                "this method has no synthetic batches to mirror; take dm, datadam, dc, dsa, dcc, mtt, ftd, tesla, ast "
                "or datm"
            )
        return base

    def __call__(self, run: Run, *, data: Images, trajectories: Trajectories | None = None) -> DistilledSet:
        base, kind = self.mirrored(), cast(Any, type(self.base))
        given = {} if trajectories is None else {"trajectories": trajectories}
        if given and "trajectories" not in inputs(kind):
            raise RecipeError("recorded experts are for a base that matches trajectories, such as mtt; leave them out")
        made: DistilledSet = base(run, data=data, **given)
        made.hints["mirrored"] = True  # mirror images must come when a student is trained, too
        return made

    def mirrored(self) -> Any:
        """Return the base with mirrored batches; where flips are to come always, its experts' among them."""
        base: Any = dataclasses.replace(self.base, mirror=True)
        if not self.always_flip:
            return base
        if (experts := getattr(base, "experts", None)) is not None:
            base = dataclasses.replace(base, experts=_flipped(experts))
        return _flipped(base)


def _flipped(told: Any) -> Any:
    """Return a spec whose `augment` flips always, where it was the augmentation that flips by choice."""
    return dataclasses.replace(told, augment=ALWAYS_FLIP.get(told.augment, told.augment))

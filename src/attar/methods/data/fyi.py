"""FYI: show a network every synthetic image together with its mirror image."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from pydantic import field_validator

from attar.artifacts import DistilledSet
from attar.data import Images
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.views import Shown
from attar.run import Run
from attar.spec import AnyMethod, method

ALWAYS_FLIP = {"dsa": "dsa-always-flip"}  # flip leaves the choice of one operation, and comes with p = 0.5 before it


@method
class MirroredBatches:
    """Run any method that makes images with mirrored synthetic batches (Son et al. 2024, arXiv 2407.08113).

    Matching tends to put the left and the right of things into every image; where mirror images come for free, half of
    that is to spare. Every use of a synthetic batch in `base` is of (cat[x, mirrored x], cat[y, y]), before
    augmentation, and flips leave DSA's choice and come always. As many images are stored as without,
    and presets are those of the base. For pictures whose mirror image is as likely: not for digits and letters.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": {}}

    base: AnyMethod = DistributionMatching()  # a method's id; its own fields are base.ipc and so on
    always_flip: bool = True  # for base.augment=dsa; the paper does the same to whatever it is compared with

    @field_validator("base")
    @classmethod
    def _mirrors(cls, base: Any) -> Any:
        if not isinstance(base, Shown):
            raise ValueError("this method has no synthetic batches to mirror; take dm, datadam, dc, dsa or dcc")
        return base

    def __call__(self, run: Run, *, data: Images) -> DistilledSet:
        base: Any = self.base
        augment = ALWAYS_FLIP.get(base.augment, base.augment) if self.always_flip else base.augment
        made: DistilledSet = dataclasses.replace(base, mirror=True, augment=augment)(run, data=data)
        made.hints["protocol"] = "fyi"  # mirror images must come when a student is trained, too
        return made

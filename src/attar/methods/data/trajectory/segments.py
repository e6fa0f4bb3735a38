"""Which segment of which expert a step matches, and the order in which the student reads the synthetic images."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator

from attar.data import View, augmentation
from attar.data.plans import EpochPlan
from attar.methods.data.trajectory.matching import Batch
from attar.spec import spec


@spec
class Window:
    """The expert epochs that a segment may start from: `first` … bound − 1, all alike.

    The bound is `stop` (MTT: from epoch 0; DATM: any window), or grows from `grow_from` to `stop` during the first
    `grow_over` steps (DATM's sequential generation, arXiv 2310.05773).
    """

    first: int = Field(0, ge=0)  # epoch
    stop: int = Field(20, ge=1)  # epoch behind the last one
    grow_from: int | None = Field(None, ge=1)  # bound at the first step; none: `stop` from the beginning
    grow_over: int = Field(0, ge=0)  # steps until the bound is `stop`

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        begin = self.stop if self.grow_from is None else self.grow_from
        if not self.first < begin <= self.stop:
            raise ValueError(
                f"a window starts at first, and its bound lies above it and at most at stop; got first={self.first}, "
                f"bound={begin} and stop={self.stop}"
            )
        return self

    def bound(self, step: int) -> int:
        """Return the epoch behind the last one that `step` may start from: min(T⁺, T + ⌊(T⁺ − T) · step / E⌋)."""
        if self.grow_from is None or step >= self.grow_over:
            return self.stop
        return min(self.stop, self.grow_from + (self.stop - self.grow_from) * step // self.grow_over)

    def draw(self, step: int, rng: torch.Generator) -> int:
        """Draw the epoch from which `step` starts."""
        return int(torch.randint(self.first, self.bound(step), (), generator=rng))


def walk(
    count: int,
    batch: int | None,
    steps: int,
    augment: str,
    shape: tuple[int, ...],
    *,
    order: int,
    rng: torch.Generator,
    mirror: bool = False,
) -> list[Batch]:
    """Return the batches of a student's steps: a random permutation of all images, cut up, and anew when used up.

    Args:
        count: number of synthetic images.
        batch: images a step; none means all of them.
        steps: of the student.
        augment: drawn image by image for every step, to be replayed.
        shape: (C, H, W) of an image.
        order: key of the permutations.
        rng: of the augmentation.
        mirror: half as many images a step, each once as it is and once mirrored, so that a step reads as many as
            without; the views come on top (arXiv 2407.08113).
    """
    size = min(batch or count, count)
    plan = EpochPlan(count, max(1, size // 2) if mirror else size, order)
    drawn = augmentation(augment)
    batches = []
    for step in range(steps):
        indices = plan.indices(step)
        if mirror:
            view = drawn.draw(2 * len(indices), shape, rng)
            batches.append(Batch(torch.cat([indices, indices]), _behind_mirrors(view, len(indices))))
        else:
            batches.append(Batch(indices, drawn.draw(len(indices), shape, rng)))
    return batches


def _behind_mirrors(view: View, count: int) -> View:
    """Return the view of `2 · count` images that mirrors the second half before all else."""
    mirrored = torch.arange(2 * count) >= count
    return View((("flip", {"mirrored": mirrored}), *view.operations))

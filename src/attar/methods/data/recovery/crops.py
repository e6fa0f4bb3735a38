"""Crops that all images of a batch share while they are recovered, with a curriculum for the smallest one."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from attar.data.soft_labels import Views
from attar.data.soft_labels.views import check_ratio, crop, flip
from attar.spec import spec

Curriculum = Literal["none", "cosine", "linear", "step"]


@spec
class Crops:
    """One random resized crop and flip a step, the same for the whole batch (the official code works on tensors)."""

    smallest: float = Field(0.08, gt=0, le=1)  # share of the picture's area, of the smallest crop
    curriculum: Curriculum = "none"  # how the smallest crop shrinks from the whole picture (CDA)
    milestone: float = Field(1.0, ge=0, le=1)  # share of the steps after which it has its final size
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height; (1, 1) suits tiny images
    flip: float = Field(0.5, ge=0, le=1)  # chance of mirroring the batch

    @field_validator("ratio")
    @classmethod
    def _ordered(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        check_ratio(ratio)
        return ratio

    def lowest(self, step: int, steps: int) -> float:
        """Return a(t), the smallest share of the area that step t of T may crop (Yin & Shen 2023, arXiv 2311.18838).

        With s = `smallest` and u = t / (milestone · T) below 1: cosine s + (1 − s)(1 + cos πu)/2, linear
        s + (1 − s)(1 − u), step 1; s from the milestone on, and always without a curriculum.

        >>> [round(Crops(curriculum="cosine").lowest(t, 100), 2) for t in (0, 50, 100)]
        [1.0, 0.54, 0.08]
        """
        end = self.milestone * steps
        if self.curriculum == "none" or step >= end:
            return self.smallest
        progress = step / end
        share = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "step": 1.0}
        return self.smallest + (1 - self.smallest) * share[self.curriculum]

    def __call__(self, images: Tensor, step: int, steps: int, key: int) -> Tensor:
        """Return images `[n, C, S, S]` under the view of this step, at their size; `key` is all its randomness."""
        lowest = min(1.0, self.lowest(step, steps))
        views = Views(scale=(lowest, 1.0), ratio=self.ratio, flip=self.flip)
        first = torch.zeros(1, dtype=torch.int64)
        drawn = views.draw(key, first, first, count=1, size=images.shape[-1])
        n = len(images)
        return flip(crop(images, drawn.box.expand(n, -1)), drawn.mirrored.expand(n))

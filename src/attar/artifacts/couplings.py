"""Coupled pairs: noise, and where a teacher's trajectory carries it, kept together with the condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from attar.artifacts.base import Artifact


class Couplings(Artifact):
    """Noise and endpoints of trajectories; the same row is the same trajectory.

    Args:
        noise: `[K, *shape]`, what trajectories begin with.
        ends: `[K, *shape]`, where they end.
        which: int64 `[K]`, numbers of the conditions' names; −1 for none.
        scales: float32 `[K]`, the guidance g they were drawn with.
        path: `[K, points, *shape]`, states on the way, the first at `times[0]`; none where only the ends are kept.
        times: float64 `[points]`, falling, of the states on the way.
    """

    kind: ClassVar[str] = "couplings"

    def __init__(
        self,
        noise: Tensor,
        ends: Tensor,
        which: Tensor,
        scales: Tensor,
        *,
        path: Tensor | None = None,
        times: Tensor | None = None,
    ) -> None:
        super().__init__()
        if (
            noise.shape != ends.shape
            or not len(noise) == len(which) == len(scales)
            or (path is None) != (times is None)
        ):
            raise ValueError(f"{list(noise.shape)} noise, {list(ends.shape)} ends, {len(which)} conditions: not pairs")
        self.noise, self.ends, self.which, self.scales, self.path, self.times = noise, ends, which, scales, path, times

    def __len__(self) -> int:
        return len(self.noise)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of them."""
        names = ("noise", "ends", "which", "scales", "path", "times")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def about(self) -> dict[str, Any]:
        """Return how many there are."""
        return {"count": len(self)}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the pairs that were saved."""
        if tensors["which"].dtype != torch.int64:
            raise ValueError("numbers of conditions are whole numbers")
        return cls(**tensors)

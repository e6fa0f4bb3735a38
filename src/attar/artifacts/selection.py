"""A selection: indices of real samples, with weights or scores where the selector gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from attar.artifacts.base import Artifact
from attar.artifacts.distilled import DistilledSet
from attar.data import Images
from attar.errors import AttarError


class Selection(Artifact):
    """Indices into a data set.

    Args:
        indices: `[K]` int64, in the order of choice, class by class.
        of: fingerprint of the data the indices count in.
        source: where that data came from.
        weights: `[K]` float, how much each sample counts in training; none means alike.
        scores: `[N]` float, the selector's score of every sample, if it has one.
    """

    kind: ClassVar[str] = "selection"

    def __init__(
        self, indices: Tensor, of: str, source: str, *, weights: Tensor | None = None, scores: Tensor | None = None
    ) -> None:
        super().__init__()
        self.indices, self.of, self.source, self.weights, self.scores = indices, of, source, weights, scores

    def __len__(self) -> int:
        return len(self.indices)

    def distilled(self, data: Images) -> DistilledSet:
        """Return the chosen real images as a distilled set.

        Raises:
            AttarError: `data` is not the data the selection was made from.
        """
        if data.fingerprint != self.of:
            raise AttarError(f"this selection was made from {self.source}, and '{data.source}' is not the same data")
        return DistilledSet.from_indices(data, self.indices)

    def tensors(self) -> dict[str, Tensor]:
        """Return indices, and weights and scores where there are any."""
        named = {"indices": self.indices, "weights": self.weights, "scores": self.scores}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def about(self) -> dict[str, Any]:
        """Return what the indices count in."""
        return {"of": self.of, "source": self.source, "count": len(self)}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the selection that was saved."""
        indices, weights, scores = tensors["indices"], tensors.get("weights"), tensors.get("scores")
        if indices.dtype != torch.int64 or indices.dim() != 1 or bool((indices < 0).any()):
            raise ValueError("indices are not a list of positions")
        if weights is not None and weights.shape != indices.shape:
            raise ValueError(f"{tuple(weights.shape)} weights of {len(indices)} indices")
        return cls(indices, about["of"], about["source"], weights=weights, scores=scores)

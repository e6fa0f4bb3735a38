"""A distilled set whose labels are a small network: low-rank updates of an encoder that everybody has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor

from attar.artifacts.distilled import DistilledSet

PREFIX = "projector."


class ProjectedSet(DistilledSet):
    """Images with hard labels, and the factors that turn an encoder into a projector from images to labels.

    Attributes:
        factors: name to tensor, everything of the projector that was trained, and its head where no text gives it.
        projector: how it is built: `rank`, `head_rank`, `encoder` (fingerprint), `named` (the head comes from text).
    """

    kind: ClassVar[str] = "projected-set"
    factors: Mapping[str, Tensor]
    projector: Mapping[str, Any]

    @classmethod
    def of(cls, made: DistilledSet, factors: Mapping[str, Tensor], projector: Mapping[str, Any]) -> Self:
        """Return a distilled set with a projector."""
        self = cls.__new__(cls)
        self.__dict__.update(made.__dict__)
        self.factors = {name: tensor.detach().cpu() for name, tensor in factors.items()}
        self.projector = dict(projector)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Return images, labels and the projector's factors."""
        return {**super().tensors(), **{f"{PREFIX}{name}": tensor for name, tensor in self.factors.items()}}

    def about(self) -> dict[str, Any]:
        """Return what a distilled set is about, and how the projector is built."""
        return {**super().about(), "projector": dict(self.projector)}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the set that was saved."""
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
        factors = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
        return cls.of(DistilledSet.rebuild(about, own), factors, about["projector"])

"""A distilled set whose images carry numbers to be predicted: learned labels, or what a teacher represents them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from attar.artifacts.distilled import DistilledSet

UNLABELLED = ("unlabelled",)  # the one class of a set made without labels


class TargetedSet(DistilledSet):
    """Images with targets `[N, d]` float32 that students regress on (`attar.train.regression`).

    Where targets are learned labels, d is the number of classes and `labels` says which class an image started in.
    A set made without labels has the one class `unlabelled`.
    """

    kind: ClassVar[str] = "targeted-set"
    targets: Tensor

    @classmethod
    def of(cls, made: DistilledSet, targets: Tensor) -> Self:
        """Return a distilled set with targets, one row an image.

        Raises:
            ValueError: they are not.
        """
        if targets.dim() != 2 or len(targets) != len(made) or targets.dtype != torch.float32:
            raise ValueError(f"targets are {targets.dtype} {list(targets.shape)}, not float32 [{len(made)}, d]")
        self = cls.__new__(cls)
        self.__dict__.update(made.__dict__)
        self.images, self.targets = made.images.detach(), targets.detach()
        return self

    @property
    def labelled(self) -> bool:
        """Whether it was made with labels."""
        return self.classes != UNLABELLED

    def tensors(self) -> dict[str, Tensor]:
        """Return images, labels and targets."""
        return {**super().tensors(), "targets": self.targets}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the set that was saved."""
        own = {name: tensor for name, tensor in tensors.items() if name != "targets"}
        return cls.of(DistilledSet.rebuild(about, own), tensors["targets"])

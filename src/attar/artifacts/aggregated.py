"""A student that asks its network about several transformations of a picture and answers with their mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor, nn

from attar.artifacts.student import Student
from attar.data.transformations import Transformations, count, transformed


class Aggregated(nn.Module):
    """The mean over transformations of what a joint head says of each class under the transformation that it sees.

    Args:
        network: gives logits `[n, classes · M]` of (class, transformation), transformations of one class in a row.
        transformations: their name.
    """

    def __init__(self, network: nn.Module, transformations: Transformations) -> None:
        super().__init__()
        self.network, self.transformations = network, transformations

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[n, classes]`; M forward passes."""
        return aggregated(self.network(transformed(images, self.transformations)), count(self.transformations))


def aggregated(joint: Tensor, many: int) -> Tensor:
    """Return P[k] = 1/M Σ_j z(x_j)[k · M + j], `[n, classes]`, of joint logits `[n · M, classes · M]`.

    Lee, Hwang & Shin 2020, arXiv 1910.05872, section 3.2.
    """
    every = joint.reshape(-1, many, joint.shape[1] // many, many)  # picture, shown as, class, said to be shown as
    return torch.diagonal(every, dim1=1, dim2=3).mean(-1)


class AggregatedStudent(Student):
    """A trained network with a joint head; it answers for all transformations of a picture.

    Args:
        module: `Aggregated`.
        net: spec of the network inside.
    """

    kind: ClassVar[str] = "aggregated-student"

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and buffers of the network inside."""
        return dict(self.module.network.state_dict())  # type: ignore[union-attr]

    def about(self) -> dict[str, Any]:
        """Return how the network is built and what it is asked."""
        return {**super().about(), "transformations": self.module.transformations}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the network around its weights.

        Raises:
            ValueError: transformations that there are not.
        """
        name = about["transformations"]
        if name not in get_args(Transformations):
            raise ValueError(f"unknown transformations {name!r}")
        joint = [f"{label} {shown}" for label in about["classes"] for shown in range(count(name))]
        inner = Student.rebuild({**about, "classes": joint}, tensors)
        classes = tuple(about["classes"])
        return cls(Aggregated(inner.module, name).eval(), inner.net, inner.channels, inner.size, classes)

"""Expert trajectories: the parameters of networks in training on the real data, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor

from attar.artifacts.base import Artifact
from attar.data import Images
from attar.errors import AttarError
from attar.nets import Net
from attar.spec import to_json


class Trajectories(Artifact):
    """The parameters of experts at their start and behind every epoch.

    Args:
        experts: one `[epochs + 1, P]` float32 an expert, flat in the order of `module.parameters()`.
        net: spec of their network.
        data: what they were trained on.
    """

    kind: ClassVar[str] = "trajectories"
    example: ClassVar[str] = "a run or artifact folder of trajectories"

    def __init__(self, experts: list[Tensor], net: Any, data: Images) -> None:
        super().__init__()
        if len({tuple(expert.shape) for expert in experts}) != 1 or experts[0].dim() != 2:
            raise ValueError(f"experts need one shape [epochs + 1, P]; got {[list(e.shape) for e in experts]}")
        self.experts, self.net = experts, net
        self.channels, self.size, self.classes = data.channels, data.size, tuple(data.classes)
        self.of, self.source = data.fingerprint, data.source

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def num_classes(self) -> int:
        """The number of outputs of an expert."""
        return len(self.classes)

    @property
    def epochs(self) -> int:
        """Epochs of training; there is one snapshot more."""
        return len(self.experts[0]) - 1

    @property
    def parameters(self) -> int:
        """P, the length of a snapshot."""
        return self.experts[0].shape[1]

    def step_lengths(self) -> Tensor:
        """Return ‖θ_{e+1} − θ_e‖ `[experts, epochs]`: how far an expert moves in an epoch."""
        return torch.stack([expert.diff(dim=0).norm(dim=1) for expert in self.experts])

    def check(self, net: Any, data: Images) -> None:
        """Refuse to be used with another network or other data.

        Raises:
            AttarError: what differs, and what to change.
        """
        if to_json(self.net) != to_json(net):
            theirs, ours = (to_json(spec) for spec in (self.net, net))
            differing = [key for key in theirs if theirs[key] != ours.get(key)] or ["kind"]
            told = ", ".join(f"net.{key}={theirs[key]}" for key in differing)
            raise AttarError(f"these experts are another network ({self.net.label}); use {told}, or other experts")
        if self.of != data.fingerprint:
            raise AttarError(
                f"these experts were trained on other data ({self.source}, {self.channels}×{self.size}×{self.size}) "
                f"than '{data.source}'; use data={self.source}, or record experts on this data"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return one tensor an expert."""
        return {f"expert.{index:04d}": expert for index, expert in enumerate(self.experts)}

    def about(self) -> dict[str, Any]:
        """Return the network and the data."""
        return {
            "net": to_json(self.net),
            "experts": len(self),
            "epochs": self.epochs,
            "parameters": self.parameters,
            "channels": self.channels,
            "size": self.size,
            "classes": list(self.classes),
            "of": self.of,
            "source": self.source,
        }

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the trajectories that were saved."""
        made = cls.__new__(cls)
        Artifact.__init__(made)
        made.experts = [tensors[name] for name in sorted(tensors)]
        if {(expert.shape, expert.dtype, expert.dim()) for expert in made.experts} != {
            (made.experts[0].shape, torch.float32, 2)
        }:
            raise ValueError("experts are not float32 tensors of one shape [epochs + 1, P]")
        made.net = TypeAdapter(Net).validate_python(about["net"])
        made.channels, made.size, made.classes = about["channels"], about["size"], tuple(about["classes"])
        made.of, made.source = about["of"], about["source"]
        return made

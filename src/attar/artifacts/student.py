"""A student: a trained network with everything that was there for training alone stripped off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from attar.artifacts.base import Artifact
from attar.nets import NETS, Net
from attar.spec import to_json


class Student(Artifact):
    """A trained network and how to build it again.

    Args:
        module: the trained module.
        net: its spec.
        channels: colour channels of its input.
        size: pixels a side of its input.
        classes: names of its outputs.
    """

    kind: ClassVar[str] = "student"
    example: ClassVar[str] = "a network's run or artifact folder"

    def __init__(self, module: nn.Module, net: Any, channels: int, size: int, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.net, self.channels, self.size, self.classes = module, net, channels, size, tuple(classes)

    @property
    def num_classes(self) -> int:
        """The number of outputs."""
        return len(self.classes)

    @property
    def storable(self) -> bool:
        """Whether it can be saved and loaded back: a spec of ours builds its network."""
        return isinstance(self.net, tuple({type(net) for net in NETS.values()}))

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and buffers."""
        return dict(self.module.state_dict())

    def about(self) -> dict[str, Any]:
        """Return how the network is built."""
        return {
            "net": to_json(getattr(self.module, "as_built", self.net)),  # a checkpoint may be gone one day
            "channels": self.channels,
            "size": self.size,
            "classes": list(self.classes),
        }

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the network around its weights.

        It is built on no memory, so that a file that claims a huge network takes none.

        Raises:
            ValueError: a weight has another type than the network's, or the network is fetched from elsewhere.
            RuntimeError: the weights are not those of the network.
        """
        net = TypeAdapter(Net).validate_python(about["net"])
        if getattr(net, "name", ""):
            raise ValueError("the network is the one of a checkpoint elsewhere, and a file is to say how it is built")
        with torch.device("meta"):
            module = net.build(about["channels"], about["size"], len(about["classes"]))
        for name, expected in module.state_dict().items():
            if name in tensors and tensors[name].dtype != expected.dtype:
                raise ValueError(f"'{name}' is {tensors[name].dtype}, not {expected.dtype}")
        module.load_state_dict(dict(tensors), assign=True)
        return cls(module.eval(), net, about["channels"], about["size"], tuple(about["classes"]))

"""A student that answers through its teacher's head: its last map is projected to be the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from attar.artifacts.student import Student
from attar.errors import RecipeError
from attar.nets import Net
from attar.nets.network import Network, convolution
from attar.spec import to_json


class ReusedHead(nn.Module):
    """A student's stages, a projector of its last map to the teacher's, and the teacher's frozen end.

    Args:
        student: gives its stages; its own embedding and head are left out.
        teacher: gives what follows its last stage.
        channels: colour channels of the images.
        size: their pixels a side.
        factor: the projector is this much narrower inside than the teacher's map.

    Raises:
        RecipeError: a network whose stages do not simply follow each other and end in a map.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, *, channels: int, size: int, factor: int) -> None:
        super().__init__()
        before, behind = _plain(student), _plain(teacher)
        mine, theirs = (_last_map(network, channels, size) for network in (before, behind))
        inner = max(theirs[0] // factor, 1)
        self.stages, self.pools = before.stages, before.pools
        self.projector = nn.Sequential(
            *convolution(mine[0], inner, 1), *convolution(inner, inner), *convolution(inner, theirs[0], 1)
        )
        self.end = nn.Sequential(behind.pools[-1], behind.collapse).requires_grad_(False).eval()
        self.head = behind.head.requires_grad_(False)
        self.num_features, self.num_classes = behind.num_features, behind.num_classes
        self.factor, self.places = factor, (theirs[1], theirs[2])

    def train(self, mode: bool = True) -> Self:
        """Let what is trained change its mode; the teacher's end stays in evaluation mode."""
        super().train(mode)
        self.end.eval()
        return self

    def embed(self, images: Tensor) -> Tensor:
        """Return what the teacher's head reads, `[n, num_features]`."""
        x = images
        for number, (stage, pool) in enumerate(zip(self.stages, self.pools, strict=True), 1):
            x = stage(x) if number == len(self.stages) else pool(stage(x))
        if x.shape[2:] != self.places:
            larger = x.shape[2] > self.places[0]
            x = functional.adaptive_avg_pool2d(x, self.places) if larger else functional.interpolate(x, self.places)
        embedding: Tensor = self.end(self.projector(x))
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        logits: Tensor = self.head(self.embed(images))
        return logits


class ReusedHeadStudent(Student):
    """A student with its teacher's head.

    Args:
        module: `ReusedHead`.
        net: spec of the network whose stages it has.
        teacher_net: spec of the network whose end it has.
    """

    kind: ClassVar[str] = "reused-head-student"

    def __init__(
        self, module: ReusedHead, net: Any, teacher_net: Any, *, channels: int, size: int, classes: tuple[str, ...]
    ) -> None:
        super().__init__(module, net, channels, size, classes)
        self.teacher_net = teacher_net

    def about(self) -> dict[str, Any]:
        """Return how both networks are built."""
        return {**super().about(), "teacher_net": to_json(self.teacher_net), "factor": self.module.factor}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the network around its weights, on no memory.

        Raises:
            ValueError: a weight has another type than the network's, or a network is fetched from elsewhere.
            RuntimeError: the weights are not those of the network.
        """
        net, teacher_net = (TypeAdapter(Net).validate_python(about[key]) for key in ("net", "teacher_net"))
        if any(getattr(each, "name", "") for each in (net, teacher_net)):
            raise ValueError("a network is the one of a checkpoint elsewhere, and a file is to say how it is built")
        channels, size, classes = about["channels"], about["size"], tuple(about["classes"])
        with torch.device("meta"):
            student, teacher = (each.build(channels, size, len(classes)) for each in (net, teacher_net))
            module = ReusedHead(student, teacher, channels=channels, size=size, factor=int(about["factor"]))
        for name, expected in module.state_dict().items():
            if name in tensors and tensors[name].dtype != expected.dtype:
                raise ValueError(f"'{name}' is {tensors[name].dtype}, not {expected.dtype}")
        module.load_state_dict(dict(tensors), assign=True)
        module.end.requires_grad_(False)
        module.head.requires_grad_(False)
        return cls(module.eval(), net, teacher_net, channels=channels, size=size, classes=classes)


def _plain(network: nn.Module) -> Network:
    """Return a network that is known to be its stages and pools behind each other."""
    if not isinstance(network, Network) or type(network).embed is not Network.embed:
        raise RecipeError(
            f"{type(network).__name__} is not made of stages behind each other, and SimKD puts the student's in front "
            "of the teacher's end; take networks such as resnet8x4 and resnet32x4"
        )
    return network


@torch.no_grad()
def _last_map(network: Network, channels: int, size: int) -> torch.Size:
    """Return the shape of a sample's last map, `[channels, height, width]`."""
    training = network.training
    device = next(network.parameters()).device
    maps, _ = network.eval().features(torch.zeros(1, channels, size, size, device=device))
    network.train(training)
    if maps[-1].dim() != 4:
        raise RecipeError(
            f"{type(network).__name__} ends in vectors, and SimKD projects maps; take a convolutional one"
        )
    return maps[-1].shape[1:]

"""What every reference network is: stages of layers with pools between them, an embedding and a linear head."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from attar.nets.specs import GROUPS

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Sigmoid, nn.SiLU, nn.GELU)


class Network(nn.Module):
    """A classifier of images `[n, channels, size, size]` whose intermediate maps can be read.

    `stages[i]` ends with an activation, or linearly where the paper's blocks do; `pools[i]` follows it, and `collapse`
    makes the last map a vector. Inputs are float images in normalised space.
    """

    def __init__(
        self, stages: Sequence[nn.Module], pools: Sequence[nn.Module], collapse: nn.Module, features: int, classes: int
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.pools = nn.ModuleList(pools)
        self.collapse = collapse
        self.head = nn.Linear(features, classes)
        self.num_features = features
        self.num_classes = classes

    def embed(self, x: Tensor) -> Tensor:
        """Return the embedding `[n, num_features]`: the input of the linear head."""
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = pool(stage(x))
        out: Tensor = self.collapse(x)
        return out

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the map of every stage, after its activation and before its pool, and the embedding."""
        maps = []
        for stage, pool in zip(self.stages, self.pools, strict=True):
            maps.append(stage(x))
            x = pool(maps[-1])
        return maps, self.collapse(x)

    def map_of(self, given: Any) -> Tensor:
        """Return what a stage gave as the map that `features` hands out."""
        made: Tensor = given
        return made

    @property
    def activations(self) -> list[str | None]:
        """The submodule that is each stage's last activation, such as `stages.1.2`; none where a stage ends linearly.

        What goes into that submodule is the stage's map before its activation.
        """
        return [_last_activation(stage, f"stages.{number}") for number, stage in enumerate(self.stages)]

    def before_activation(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the map of every stage before its last activation, and the embedding.

        The maps are as large as those of `features`, and the same where a stage ends linearly.
        """
        before: dict[int, Tensor] = {}

        def keep(number: int, _: nn.Module, given: tuple[Tensor, ...]) -> None:
            before[number] = given[0]

        handles = [
            self.get_submodule(path).register_forward_pre_hook(functools.partial(keep, number))
            for number, path in enumerate(self.activations)
            if path is not None
        ]
        try:
            maps, embedding = self.features(x)
        finally:
            for handle in handles:
                handle.remove()
        return [before.get(number, after) for number, after in enumerate(maps)], embedding

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[n, num_classes]`."""
        logits: Tensor = self.head(self.embed(x))
        return logits


def normalisation(kind: str, channels: int, size: int) -> nn.Module:
    """Return the norm layer of a map `[n, channels, size, size]`, always with learned scale and shift.

    Instance norm is a group norm of one channel a group, as in the field's code: equal to `InstanceNorm2d`, and 1.2
    to 1.4 times as fast on the CPUs it was measured on. On one pixel it gives zeros, so the specs refuse images that
    small.
    """
    if kind == "instance":
        return nn.GroupNorm(channels, channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "layer":
        return nn.LayerNorm([channels, size, size])
    if kind == "group":
        return nn.GroupNorm(GROUPS, channels)
    return nn.Identity()


def convolution(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """Return convolution, batch norm and, where `active`, ReLU; the map is ⌈size / stride⌉ pixels wide behind it."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),  # the norm has a shift
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if active else nn.Sequential(*layers)


def average_over_places() -> nn.Sequential:
    """Return the mean of a map `[n, C, h, w]` over its places, `[n, C]`."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _last_activation(stage: nn.Module, path: str) -> str | None:
    if isinstance(stage, _ACTIVATIONS):
        return path
    if isinstance(getattr(stage, "activation", None), nn.Module):  # a residual block's, behind its sum
        return f"{path}.activation"
    if isinstance(stage, nn.Sequential):
        for name, layer in reversed(list(stage.named_children())):
            if not isinstance(layer, nn.Identity):
                return _last_activation(layer, f"{path}.{name}")
    return None

"""What every reference network is: stages of layers with pools between them, an embedding and a linear head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from attar.nets.specs import GROUPS


class Network(nn.Module):
    """A classifier of images `[n, channels, size, size]` whose intermediate maps can be read.

    `stages[i]` ends with an activation, `pools[i]` follows it, and `collapse` makes the last map a vector.
    Inputs are float images in normalised space.
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

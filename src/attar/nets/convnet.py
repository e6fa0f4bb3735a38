"""The ConvNet on which the field distils."""

from __future__ import annotations

from torch import nn

from attar.nets.network import Network, normalisation
from attar.nets.specs import ConvNet, canvas

_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "leaky": nn.LeakyReLU, "swish": nn.SiLU}
_POOLS = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}


def convnet(spec: ConvNet, channels: int, size: int, classes: int) -> Network:
    """Return `depth` blocks [conv 3×3 → norm → activation → 2×2 pool], flattened into one linear layer."""
    stages: list[nn.Module] = []
    pools: list[nn.Module] = []
    padding = 1 + (canvas(size) - size) // 2
    size = canvas(size)
    for _ in range(spec.depth):
        convolution = nn.Conv2d(channels, spec.width, kernel_size=3, padding=padding)
        norm = normalisation(spec.norm, spec.width, size)
        stages.append(nn.Sequential(convolution, norm, _ACTIVATIONS[spec.activation]()))
        pools.append(nn.Identity() if spec.pool == "none" else _POOLS[spec.pool](2))
        size = size if spec.pool == "none" else size // 2
        channels, padding = spec.width, 1
    return Network(stages, pools, nn.Flatten(), spec.width * size * size, classes)

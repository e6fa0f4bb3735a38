"""The ConvNet on which the field distils."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attar.nets.network import Network, normalisation
from attar.nets.specs import ConvNet, canvas

_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "leaky": nn.LeakyReLU, "swish": nn.SiLU}


class HalfAverage(nn.Module):
    """2×2 average pooling of `[n, C, H, W]` to `[n, C, H // 2, W // 2]`, as `nn.AvgPool2d(2)`.

    On a CPU torch's own kernel is not vectorised and takes a third of a small network's training step; sums of slices
    take half its time and are differentiable twice. The compiler makes its best code of a mean over both sides of the
    squares: a step takes five eighths of the time that it takes with torch's kernel, and a third of that with slices.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of every 2×2 square; an odd last row or column is left out."""
        if x.device.type != "cpu":
            return nn.functional.avg_pool2d(x, 2)
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        if torch.compiler.is_compiling():
            squares = x[:, :, :height, :width].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
            return squares.mean((3, 5))
        rows = x[:, :, 0:height:2] + x[:, :, 1:height:2]
        return (rows[..., 0:width:2] + rows[..., 1:width:2]) * 0.25


_POOLS: dict[str, Callable[[], nn.Module]] = {"average": HalfAverage, "max": lambda: nn.MaxPool2d(2)}


def convnet(spec: ConvNet, channels: int, size: int, classes: int) -> Network:
    """Return `depth` blocks [conv 3×3 → norm → activation → 2×2 pool], flattened into one linear layer."""
    stages: list[nn.Module] = []
    pools: list[nn.Module] = []
    padding = 1 + (canvas(size) - size) // 2
    size = canvas(size)
    for width in spec.widths:
        convolution = nn.Conv2d(channels, width, kernel_size=3, padding=padding)
        norm = normalisation(spec.norm, width, size)
        stages.append(nn.Sequential(convolution, norm, _ACTIVATIONS[spec.activation]()))
        pools.append(nn.Identity() if spec.pool == "none" else _POOLS[spec.pool]())
        size = size if spec.pool == "none" else size // 2
        channels, padding = width, 1
    return Network(stages, pools, nn.Flatten(), channels * size * size, classes)

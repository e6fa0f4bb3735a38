"""MLP, LeNet, AlexNet and VGG as the field evaluates them on small images."""

from __future__ import annotations

import itertools

from torch import nn

from attar.nets.network import Network, average_over_places, normalisation
from attar.nets.specs import MLP, VGG11, AlexNet, LeNet, canvas
from attar.nets.zoo_specs import CifarVGG

# convolutions of each of the five blocks, by layers with weights in the original
_VGG_BLOCKS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def mlp(spec: MLP, channels: int, size: int, classes: int) -> Network:
    """Return `depth` hidden layers of `width` units with ReLU; the stages' maps are `[n, width]`."""
    widths = [channels * size * size, *[spec.width] * spec.depth]
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    layers[0].insert(0, nn.Flatten())
    return Network(layers, [nn.Identity() for _ in layers], nn.Identity(), spec.width, classes)


def lenet(_: LeNet, channels: int, size: int, classes: int) -> Network:
    """Return LeNet-5: two 5×5 convolutions of 6 and 16 channels, hidden layers of 120 and 84 units."""
    padding = 2 if size < 32 else 0  # the original reads 32 px; smaller images get its border back
    first = nn.Sequential(nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU())
    side = ((size + 2 * padding - 4) // 2 - 4) // 2
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(16 * side * side, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
    return Network([first, second], [nn.MaxPool2d(2), nn.MaxPool2d(2)], hidden, 84, classes)


def alexnet(spec: AlexNet, channels: int, size: int, classes: int) -> Network:
    """Return five convolutions in three blocks, each with a max pool behind it."""
    w, wide, widest = spec.width, spec.width * 3 // 2, spec.width * 2
    extra = (canvas(size) - size) // 2
    size = canvas(size)
    stages = [
        _conv(channels, w, spec.norm, size, kernel=5, extra=extra),
        _conv(w, wide, spec.norm, size // 2, kernel=5),
        nn.Sequential(
            *_conv(wide, widest, spec.norm, size // 4),
            *_conv(widest, wide, spec.norm, size // 4),
            *_conv(wide, wide, spec.norm, size // 4),
        ),
    ]
    return Network(stages, [nn.MaxPool2d(2) for _ in stages], nn.Flatten(), wide * (size // 8) ** 2, classes)


def vgg11(spec: VGG11, channels: int, size: int, classes: int) -> Network:
    """Return eight convolutions in five blocks, each with a max pool behind it; 32 px end in one pixel."""
    extra = (canvas(size) - size) // 2
    size = canvas(size)
    stages = []
    for multiples in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        layers: list[nn.Module] = []
        for multiple in multiples:
            layers += _conv(channels, spec.width * multiple, spec.norm, size, extra=extra)
            channels, extra = spec.width * multiple, 0
        stages.append(nn.Sequential(*layers))
        size //= 2
    return Network(stages, [nn.MaxPool2d(2) for _ in stages], nn.Flatten(), channels * size * size, classes)


def cifar_vgg(spec: CifarVGG, channels: int, size: int, classes: int) -> Network:
    """Return five blocks, the last map averaged; a pool follows the first three, and the fourth from 64 px on."""
    extra = (canvas(size) - size) // 2
    stages = []
    for multiple, depth in zip((1, 2, 4, 8, 8), _VGG_BLOCKS[spec.depth], strict=True):
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += _conv(channels, spec.width * multiple, "batch", size, extra=extra)
            channels, extra = spec.width * multiple, 0
        stages.append(nn.Sequential(*layers))
    fourth = nn.MaxPool2d(2) if size >= 64 else nn.Identity()
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(2), fourth, nn.Identity()]
    return Network(stages, pools, average_over_places(), channels, classes)


def _conv(inputs: int, outputs: int, norm: str, size: int, *, kernel: int = 3, extra: int = 0) -> nn.Sequential:
    """Return convolution, norm and ReLU on a map that is `size` pixels wide behind the convolution."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 + extra)
    return nn.Sequential(convolution, normalisation(norm, outputs, size), nn.ReLU())

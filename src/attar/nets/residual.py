"""Residual networks of the CRD benchmark: ResNets of three stages, wide ResNets, ResNet-50 for small images."""

from __future__ import annotations

from torch import Tensor, nn

from attar.nets.network import Network, average_over_places, convolution
from attar.nets.zoo_specs import CifarResNet, ResNet50, StagedResNet, WideResNet


class ResidualBlock(nn.Module):
    """`body` beside a shortcut, which is a 1×1 convolution where size or channels change, and ReLU behind the sum."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride=stride, active=False)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, s, s]` to `[n, outputs, ⌈s / stride⌉, ⌈s / stride⌉]`."""
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


class WideBlock(nn.Module):
    """Two convolutions, each behind norm and ReLU, beside a shortcut; the sum is not activated.

    Where size or channels change, the block reads a map that is activated already, for both ways.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        changes = stride > 1 or inputs != outputs
        self.before: nn.Module = nn.Identity() if changes else norm_and_relu(inputs)
        self.body = nn.Sequential(
            *convolution(inputs, outputs, stride=stride), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, s, s]` to `[n, outputs, ⌈s / stride⌉, ⌈s / stride⌉]`."""
        out: Tensor = self.body(self.before(x)) + self.shortcut(x)
        return out


def basic(inputs: int, outputs: int, stride: int) -> ResidualBlock:
    """Return a block of two 3×3 convolutions."""
    body = nn.Sequential(*convolution(inputs, outputs, stride=stride), *convolution(outputs, outputs, active=False))
    return ResidualBlock(body, inputs, outputs, stride)


def bottleneck(inputs: int, outputs: int, stride: int) -> ResidualBlock:
    """Return a block that goes through a quarter of its outputs: 1×1, 3×3 with the stride, 1×1."""
    inner = outputs // 4
    body = nn.Sequential(
        *convolution(inputs, inner, 1),
        *convolution(inner, inner, stride=stride),
        *convolution(inner, outputs, 1, active=False),
    )
    return ResidualBlock(body, inputs, outputs, stride)


def norm_and_relu(channels: int) -> nn.Sequential:
    """Return batch norm and ReLU."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def cifar_resnet(spec: CifarResNet, channels: int, classes: int) -> Network:
    """Return stem and three stages of (depth − 2) / 6 blocks, the second and third halving the map."""
    stem = max(16, 8 * spec.multiplier)  # 32 in the benchmark's x4
    stages: list[nn.Module] = []
    inputs = stem
    for number, width in enumerate((16, 32, 64)):
        blocks: list[nn.Module] = [] if number else [convolution(channels, stem)]
        for place in range((spec.depth - 2) // 6):
            blocks.append(basic(inputs, width * spec.multiplier, 2 if number and not place else 1))
            inputs = width * spec.multiplier
        stages.append(nn.Sequential(*blocks))
    return Network(stages, [nn.Identity() for _ in stages], average_over_places(), inputs, classes)


def staged_resnet(spec: StagedResNet, channels: int, classes: int) -> Network:
    """Return a stem of the first stage's width and the stages, all but the first halving the map."""
    stages: list[nn.Module] = []
    inputs = spec.widths[0]
    for number, (count, width) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
        blocks: list[nn.Module] = [] if number else [convolution(channels, inputs)]
        for place in range(count):
            blocks.append(basic(inputs, width, 2 if number and not place else 1))
            inputs = width
        stages.append(nn.Sequential(*blocks))
    return Network(stages, [nn.Identity() for _ in stages], average_over_places(), inputs, classes)


def wide_resnet(spec: WideResNet, channels: int, classes: int) -> Network:
    """Return stem and three stages of (depth − 4) / 6 blocks, each ending with norm and ReLU."""
    stages: list[nn.Module] = []
    inputs = 16
    for number, width in enumerate((16, 32, 64)):
        blocks: list[nn.Module] = [] if number else [nn.Conv2d(channels, inputs, 3, padding=1, bias=False)]
        if not number and spec.multiplier > 1:
            blocks += norm_and_relu(inputs)  # the first block changes the channels
        for place in range((spec.depth - 4) // 6):
            blocks.append(WideBlock(inputs, width * spec.multiplier, 2 if number and not place else 1))
            inputs = width * spec.multiplier
        stages.append(nn.Sequential(*blocks, *norm_and_relu(inputs)))
    return Network(stages, [nn.Identity() for _ in stages], average_over_places(), inputs, classes)


def resnet50(spec: ResNet50, channels: int, classes: int) -> Network:
    """Return stem and four stages of 3, 4, 6 and 3 bottlenecks, the last three halving the map."""
    stages: list[nn.Module] = []
    inputs = spec.width
    for number, depth in enumerate((3, 4, 6, 3)):
        outputs = 4 * spec.width * 2**number
        blocks: list[nn.Module] = [] if number else [convolution(channels, inputs)]
        for place in range(depth):
            blocks.append(bottleneck(inputs, outputs, 2 if number and not place else 1))
            inputs = outputs
        stages.append(nn.Sequential(*blocks))
    return Network(stages, [nn.Identity() for _ in stages], average_over_places(), inputs, classes)

"""The mobile networks of the CRD benchmark: MobileNetV2, ShuffleNet V1 and V2 for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attar.nets.network import Network, average_over_places, convolution
from attar.nets.zoo_specs import MobileNetV2, ShuffleNetV1, ShuffleNetV2

STEM = 24  # channels of the stem of both ShuffleNets
# expansion (0: the spec's), channels, blocks, stride of the first; a tuple a stage
INVERTED = (
    ((1, 16, 1, 1), (0, 24, 2, 1)),
    ((0, 32, 3, 2),),
    ((0, 64, 4, 2), (0, 96, 3, 1)),
    ((0, 160, 3, 2), (0, 320, 1, 1)),
)
SHUFFLE_BLOCKS = (4, 8, 4)  # of a stage, the strided one included
# of the three stages and of the convolution behind them, by multiplier
SHUFFLE_V2_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2: (224, 488, 976, 2048),
}


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project linearly; added to the input where nothing changes in shape."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.layers = nn.Sequential(
            *convolution(inputs, inner, 1),
            *convolution(inner, inner, stride=stride, groups=inner),
            *convolution(inner, outputs, 1, active=False),
        )
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, s, s]` to `[n, outputs, ⌈s / stride⌉, ⌈s / stride⌉]`."""
        out: Tensor = self.layers(x)
        return x + out if self.added else out


class GroupedBlock(nn.Module):
    """ShuffleNet's block: grouped 1×1, shuffle, 3×3 by channel, grouped 1×1; ReLU behind the sum.

    With stride 2 the input, averaged, is laid beside the result instead of added to it.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, groups: int) -> None:
        super().__init__()
        added = outputs - inputs if stride == 2 else outputs
        inner, first = added // 4, 1 if inputs == STEM else groups  # the stem's few channels are not grouped
        self.body = nn.Sequential(
            *convolution(inputs, inner, 1, groups=first),
            nn.ChannelShuffle(first),
            *convolution(inner, inner, stride=stride, groups=inner),
            *convolution(inner, added, 1, groups=groups, active=False),
        )
        self.shortcut = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        self.beside = stride == 2
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, s, s]` to `[n, outputs, ⌈s / stride⌉, ⌈s / stride⌉]`."""
        body, shortcut = self.body(x), self.shortcut(x)
        out: Tensor = self.activation(torch.cat([body, shortcut], 1) if self.beside else body + shortcut)
        return out


class SplitBlock(nn.Module):
    """ShuffleNet V2's block: half of the channels are convolved and shuffled among the others.

    With stride 2 both halves are made of the whole input. ReLU comes last: the half that passes by is not negative, so
    nothing changes for it, and what goes into the ReLU is the map before activation in the order of the map behind.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.whole = stride == 2
        given = inputs if self.whole else half
        self.body = nn.Sequential(
            *convolution(given, half, 1),
            *convolution(half, half, stride=stride, groups=half, active=False),
            *convolution(half, half, 1, active=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if self.whole:
            self.shortcut = nn.Sequential(
                *convolution(inputs, inputs, stride=2, groups=inputs, active=False),
                *convolution(inputs, half, 1, active=False),
            )
        self.shuffle = nn.ChannelShuffle(2)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, s, s]`, none below zero, to `[n, outputs, ⌈s / stride⌉, ⌈s / stride⌉]`."""
        passing, changed = (x, x) if self.whole else x.chunk(2, 1)
        both = torch.cat([self.shortcut(passing), self.body(changed)], 1)
        out: Tensor = self.activation(self.shuffle(both))
        return out


def mobilenet_v2(spec: MobileNetV2, channels: int, classes: int) -> Network:
    """Return four stages that end linearly, at 1/2, 1/4, 1/8 and 1/16 of the image's size."""

    def wide(paper: int) -> int:
        return int(paper * spec.multiplier)

    inputs = wide(32)
    stages: list[nn.Module] = []
    for number, settings in enumerate(INVERTED):
        blocks: list[nn.Module] = [] if number else [convolution(channels, inputs, stride=2)]
        for expansion, paper, depth, stride in settings:
            for place in range(depth):
                step, times = 1 if place else stride, expansion or spec.expansion
                blocks.append(InvertedResidual(inputs, wide(paper), stride=step, expansion=times))
                inputs = wide(paper)
        stages.append(nn.Sequential(*blocks))
    features = max(1280, wide(1280))
    collapse = nn.Sequential(convolution(inputs, features, 1), *average_over_places())
    return Network(stages, [nn.Identity() for _ in stages], collapse, features, classes)


def shufflenet_v1(spec: ShuffleNetV1, channels: int, classes: int) -> Network:
    """Return a 1×1 stem and three stages, each of which halves the map."""
    stages: list[nn.Module] = []
    inputs = STEM
    for number, depth in enumerate(SHUFFLE_BLOCKS):
        blocks: list[nn.Module] = [] if number else [convolution(channels, STEM, 1)]
        outputs = spec.width * 2**number
        for place in range(depth):
            blocks.append(GroupedBlock(inputs, outputs, stride=1 if place else 2, groups=spec.groups))
            inputs = outputs
        stages.append(nn.Sequential(*blocks))
    return Network(stages, [nn.Identity() for _ in stages], average_over_places(), inputs, classes)


def shufflenet_v2(spec: ShuffleNetV2, channels: int, classes: int) -> Network:
    """Return a 1×1 stem and three stages, each of which halves the map; one more convolution makes the features."""
    *widths, features = SHUFFLE_V2_CHANNELS[spec.multiplier]
    stages: list[nn.Module] = []
    inputs = STEM
    for number, (outputs, depth) in enumerate(zip(widths, SHUFFLE_BLOCKS, strict=True)):
        blocks: list[nn.Module] = [] if number else [convolution(channels, STEM, 1)]
        for place in range(depth):
            blocks.append(SplitBlock(inputs, outputs, stride=1 if place else 2))
            inputs = outputs
        stages.append(nn.Sequential(*blocks))
    collapse = nn.Sequential(convolution(inputs, features, 1), *average_over_places())
    return Network(stages, [nn.Identity() for _ in stages], collapse, features, classes)

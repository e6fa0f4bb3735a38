"""ResNet-18 in its form for small images, downsampling by stride or by average pooling."""

from __future__ import annotations

from torch import Tensor, nn

from attar.nets.network import Network, normalisation
from attar.nets.specs import ResNet18


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; where `halve`, the first halves the map by stride or by its own pool."""

    def __init__(self, inputs: int, outputs: int, size: int, *, halve: bool, spec: ResNet18) -> None:
        super().__init__()
        bias = spec.norm == "none"  # a norm's shift makes the bias idle
        average = halve and spec.downsample == "average"
        stride = 2 if halve and not average else 1
        small = _halved(size, spec) if halve else size
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias),
            normalisation(spec.norm, outputs, size if average else small),  # with a pool, the norm sees the full map
            nn.ReLU(),
            nn.AvgPool2d(2) if average else nn.Identity(),
        )
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias), normalisation(spec.norm, outputs, small)
        )
        self.shortcut: nn.Module = nn.Identity()
        if halve or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=bias),
                nn.AvgPool2d(2) if average else nn.Identity(),
                normalisation(spec.norm, outputs, small),
            )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, s, s]` to `[n, outputs, s', s']`, with s' = s or half of it."""
        out: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return out


def resnet18(spec: ResNet18, channels: int, size: int, classes: int) -> Network:
    """Return the stem and four stages of two blocks; the stages' maps are their outputs.

    With strides the last map is averaged to `[n, 8 · width]`; with average pools it is flattened, as the field does.
    """
    stem = nn.Sequential(
        nn.Conv2d(channels, spec.width, 3, padding=1, bias=spec.norm == "none"),
        normalisation(spec.norm, spec.width, size),
        nn.ReLU(),
    )
    stages = []
    inputs = spec.width
    for stage, multiple in enumerate((1, 2, 4, 8)):
        outputs, halve = spec.width * multiple, stage > 0
        before, size = size, _halved(size, spec) if halve else size
        blocks = [
            BasicBlock(inputs, outputs, before, halve=halve, spec=spec),
            BasicBlock(outputs, outputs, size, halve=False, spec=spec),
        ]
        stages.append(nn.Sequential(*([stem] if stage == 0 else []), *blocks))
        inputs = outputs
    pools = [nn.Identity() for _ in stages]
    if spec.downsample == "average":
        return Network(stages, pools, nn.Flatten(), inputs * size * size, classes)
    collapse = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(stages, pools, collapse, inputs, classes)


def _halved(size: int, spec: ResNet18) -> int:
    """Return the side of a halved map: a strided convolution rounds up, a pool down."""
    return size // 2 if spec.downsample == "average" else (size + 1) // 2

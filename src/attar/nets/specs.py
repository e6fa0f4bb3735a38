"""The reference networks as specs: frozen, validated, and free of torch until one is built.

All of them are the field's forms for small square images (Zhao et al. 2021, arXiv 2006.05929, and what built on it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from attar.errors import AttarError, RecipeError
from attar.spec import spec

if TYPE_CHECKING:
    from attar.nets.network import Network

Norm = Literal["instance", "batch", "layer", "group", "none"]
Activation = Literal["relu", "sigmoid", "leaky", "swish"]
Pool = Literal["average", "max", "none"]

GROUPS = 4  # of the group norm, as in the field's code
_NORM_LABEL = {"instance": " IN", "batch": " BN", "layer": " LN", "group": " GN", "none": ""}


def canvas(size: int) -> int:
    """Return the side of the map behind the first convolution: 28 px become 32 by two more pixels of padding a side.

    The field pads 28-px images so that five halvings fit; we do it for sizes 28 to 31, grey or colour.
    """
    return size + 4 if 28 <= size < 32 else size


def _need_groups(norm: Norm, width: int) -> None:
    if norm == "group" and width % GROUPS:
        raise ValueError(f"norm='group' makes {GROUPS} groups of channels, so the width must be a multiple of {GROUPS}")


def check_shape(net: Any, channels: int, size: int, classes: int) -> None:
    """Refuse a shape that the network cannot read.

    Raises:
        RecipeError: no channel or class at all.
        AttarError: the images are too small.
    """
    if channels < 1 or classes < 1:
        raise RecipeError(f"{net.label} needs at least one channel and one class; got {channels} and {classes}")
    if size < net.minimum_size:
        raise AttarError(
            f"{net.label} cannot read {size}×{size} images: its feature map would vanish below "
            f"{net.minimum_size}×{net.minimum_size}. Use larger images, or a network that needs fewer pixels, "
            "such as net=convnet with a smaller net.depth"
        )


@spec
class ConvNet:
    """`depth` blocks of 3×3 convolution, norm, activation and 2×2 pooling, then one linear layer (arXiv 2006.05929)."""

    kind: Literal["convnet"] = "convnet"
    depth: int = Field(default=3, ge=1, le=64)  # blocks; the field takes 3 at 28 and 32 px, 4 at 64, 5 at 128
    width: int = Field(default=128, ge=1)  # channels of every block
    norm: Norm = "instance"
    activation: Activation = "relu"
    pool: Pool = "average"  # 2×2 behind every block

    @model_validator(mode="after")
    def _groups(self) -> ConvNet:
        _need_groups(self.norm, self.width)
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels: no pool may be handed a map under 2×2, nor instance norm a map of 1×1."""
        if self.pool == "none":
            return 2 if self.norm == "instance" else 1
        needed: int = 2**self.depth
        return 28 if needed == 32 else needed  # 28 px are padded to 32

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every block."""
        return (self.width,) * self.depth

    @property
    def label(self) -> str:
        """Short printable name."""
        extras = "" if self.activation == "relu" else f" {self.activation}"
        extras += "" if self.pool == "average" else f" {self.pool}-pool" if self.pool == "max" else " no pool"
        channels = "-".join(map(str, dict.fromkeys(self.widths)))
        return f"ConvNet-{self.depth} w{channels}{_NORM_LABEL[self.norm]}{extras}"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import convnet

        check_shape(self, channels, size, classes)
        return convnet.convnet(self, channels, size, classes)


@spec
class DoublingConvNet(ConvNet):
    """A ConvNet whose channels double from block to block: 128, 256, 512 at 32 px (FRePo, arXiv 2206.00719)."""

    kind: Literal["convnet-doubling"] = "convnet-doubling"  # type: ignore[assignment]
    width: int = Field(default=128, ge=1)  # channels of the first block

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every block."""
        return tuple(self.width * 2**block for block in range(self.depth))


@spec
class MLP:
    """Fully connected layers with ReLU on the flattened pixels; 128-128 in the field's cross-architecture pool."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(default=128, ge=1)  # units of every hidden layer
    depth: int = Field(default=2, ge=1, le=64)  # hidden layers

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels."""
        return 1

    @property
    def label(self) -> str:
        """Short printable name."""
        return f"MLP-{self.depth} w{self.width}"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`."""
        from attar.nets import classic

        check_shape(self, channels, size, classes)
        return classic.mlp(self, channels, size, classes)


@spec
class LeNet:
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998); images under 32 px are padded by two pixels a side."""

    kind: Literal["lenet"] = "lenet"

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels: 12 → 6 → 2 → 1."""
        return 12

    @property
    def label(self) -> str:
        """Short printable name."""
        return "LeNet"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import classic

        check_shape(self, channels, size, classes)
        return classic.lenet(self, channels, size, classes)


@spec
class AlexNet:
    """Five convolutions and three pools with one linear layer: the field's AlexNet for small images."""

    kind: Literal["alexnet"] = "alexnet"
    norm: Norm = "none"
    width: int = Field(
        default=128, ge=4, multiple_of=4
    )  # channels of the first convolution; the others are 1.5× and 2× of it

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels, for three pools."""
        return 8

    @property
    def label(self) -> str:
        """Short printable name."""
        return "AlexNet" + ("" if self.width == 128 else f" w{self.width}") + _NORM_LABEL[self.norm]

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import classic

        check_shape(self, channels, size, classes)
        return classic.alexnet(self, channels, size, classes)


@spec
class VGG11:
    """Eight 3×3 convolutions and five max pools (arXiv 1409.1556) with one linear layer."""

    kind: Literal["vgg11"] = "vgg11"
    norm: Norm = "instance"
    width: int = Field(default=64, ge=1)  # channels of the first convolution; the last four have eight times as many

    @model_validator(mode="after")
    def _groups(self) -> VGG11:
        _need_groups(self.norm, self.width)
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels: five halvings of 32, to which 28 px are padded."""
        return 28

    @property
    def label(self) -> str:
        """Short printable name."""
        return "VGG11" + ("" if self.width == 64 else f" w{self.width}") + _NORM_LABEL[self.norm]

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import classic

        check_shape(self, channels, size, classes)
        return classic.vgg11(self, channels, size, classes)


@spec
class ResNet18:
    """ResNet-18 (arXiv 1512.03385) with the stem of small images: one 3×3 convolution of stride 1, no max pool."""

    kind: Literal["resnet18"] = "resnet18"
    norm: Norm = "instance"
    downsample: Literal["stride", "average"] = "stride"  # average = ResNet18_AP: 2×2 average pools, flattened output
    width: int = Field(default=64, ge=1)  # channels of the first stage; each later stage doubles them

    @model_validator(mode="after")
    def _groups(self) -> ResNet18:
        _need_groups(self.norm, self.width)
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels: three halvings, the last map being at least 2×2 for instance norm."""
        if self.downsample == "average":
            return 16 if self.norm == "instance" else 8
        return 9 if self.norm == "instance" else 1

    @property
    def label(self) -> str:
        """Short printable name."""
        name = "ResNet18" + ("_AP" if self.downsample == "average" else "")
        return name + ("" if self.width == 64 else f" w{self.width}") + _NORM_LABEL[self.norm]

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import resnet

        check_shape(self, channels, size, classes)
        return resnet.resnet18(self, channels, size, classes)

"""Transformers and their kin as specs, at sizes for small images; at the papers' sizes they are the papers' networks.

None drops anything at random: dropout and stochastic depth are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from attar.nets.specs import check_shape
from attar.spec import spec

if TYPE_CHECKING:
    from attar.nets.network import Network


def whole(size: int, multiple: int) -> int:
    """Return the side of an image padded to a multiple: 28 px become 32 for patches of 8, and stay for patches of 4."""
    return -(-size // multiple) * multiple


@spec
class ViT:
    """A vision transformer (arXiv 2010.11929); width 192, depth 12 and 3 heads are DeiT-Ti's (arXiv 2012.12877)."""

    kind: Literal["vit"] = "vit"
    patch: int = Field(default=4, ge=1)  # pixels a side; the image is padded where they do not fit
    width: int = Field(default=192, ge=1)  # channels of a token
    depth: int = Field(default=12, ge=1, le=256)  # blocks
    heads: int = Field(default=3, ge=1)  # of the attention
    pool: Literal["class", "mean", "class+distilled"] = "class"  # a token, the mean of places, or DeiT's two tokens

    @model_validator(mode="after")
    def _heads(self) -> ViT:
        if self.width % self.heads:
            raise ValueError("heads share the width, so the width must be a multiple of heads")
        return self

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels: one patch."""
        return self.patch

    @property
    def label(self) -> str:
        """Short printable name."""
        return f"ViT-{self.depth} w{self.width} p{self.patch}" + ("" if self.pool == "class" else f" {self.pool}")

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import tokens

        check_shape(self, channels, size, classes)
        return tokens.vit(self, channels, size, classes)


@spec
class Mixer:
    """MLP-Mixer (arXiv 2105.01601): one MLP over places, one over channels; hidden widths ½ and 4 times the width."""

    kind: Literal["mixer"] = "mixer"
    patch: int = Field(default=4, ge=1)  # pixels a side; the image is padded where they do not fit
    width: int = Field(default=128, ge=2)  # channels of a token; 512 in Mixer-S
    depth: int = Field(default=8, ge=1, le=256)  # blocks

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels: one patch."""
        return self.patch

    @property
    def label(self) -> str:
        """Short printable name."""
        return f"Mixer-{self.depth} w{self.width} p{self.patch}"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import tokens

        check_shape(self, channels, size, classes)
        return tokens.mixer(self, channels, size, classes)


@spec
class Swin:
    """Attention in windows that move by half between blocks (arXiv 2103.14030); Swin-T: patch 4, 2-2-6-2, window 7."""

    kind: Literal["swin"] = "swin"
    patch: int = Field(default=2, ge=1)  # pixels a side
    width: int = Field(default=96, ge=1)  # channels of the first stage; each later one doubles them and halves the map
    depths: tuple[int, ...] = Field(default=(2, 2, 6), min_length=1, max_length=8)  # blocks of each stage
    heads: int = Field(default=3, ge=1)  # of the first stage; they double too
    window: int = Field(default=4, ge=2)  # places a side; a map that is no larger is one window

    @model_validator(mode="after")
    def _shape(self) -> Swin:
        if self.width % self.heads:
            raise ValueError("heads share the width, so the width must be a multiple of heads")
        _need_blocks(self.depths)
        return self

    @property
    def multiple(self) -> int:
        """To a multiple of this the image is padded, so that every stage halves its map without a rest."""
        return int(self.patch * 2 ** (len(self.depths) - 1))

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels: one place in the last map."""
        return self.multiple

    @property
    def label(self) -> str:
        """Short printable name."""
        return f"Swin {'-'.join(map(str, self.depths))} w{self.width} p{self.patch}"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import windows

        check_shape(self, channels, size, classes)
        return windows.swin(self, channels, size, classes)


@spec
class ConvNeXt:
    """Convolutions in the shape of a transformer (arXiv 2201.03545); ConvNeXt-T: patch 4, width 96, 3-3-9-3."""

    kind: Literal["convnext"] = "convnext"
    patch: int = Field(default=2, ge=1)  # pixels a side
    width: int = Field(default=40, ge=1)  # channels of the first stage; each later one doubles them and halves the map
    depths: tuple[int, ...] = Field(default=(2, 2, 6), min_length=1, max_length=8)  # blocks of each stage
    scale: float = Field(default=1e-6, ge=0)  # of what a block adds, by channel, at the start

    @model_validator(mode="after")
    def _shape(self) -> ConvNeXt:
        _need_blocks(self.depths)
        return self

    @property
    def multiple(self) -> int:
        """To a multiple of this the image is padded, so that every stage halves its map without a rest."""
        return int(self.patch * 2 ** (len(self.depths) - 1))

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels: one place in the last map."""
        return self.multiple

    @property
    def label(self) -> str:
        """Short printable name."""
        return f"ConvNeXt {'-'.join(map(str, self.depths))} w{self.width} p{self.patch}"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`; raises AttarError where they are too small."""
        from attar.nets import windows

        check_shape(self, channels, size, classes)
        return windows.convnext(self, channels, size, classes)


def _need_blocks(depths: tuple[int, ...]) -> None:
    if min(depths) < 1 or max(depths) > 256:
        raise ValueError("every stage needs at least one block and at most 256, such as depths=[2,2,6]")

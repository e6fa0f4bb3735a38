"""Dual encoders of images and texts, CLIP's, as specs: their two towers and the space in which they meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from attar.errors import RecipeError
from attar.nets.token_specs import whole
from attar.spec import spec

if TYPE_CHECKING:
    from attar.nets.dual import DualEncoder

_MOST = 256  # blocks


@spec
class Tower:
    """A transformer whose blocks may differ in heads and hidden units, as pruning leaves them."""

    width: int = Field(512, ge=1)  # channels of a token
    depth: int = Field(12, ge=0, le=_MOST)  # blocks
    heads: int = Field(8, ge=0)  # of the attention of every block
    head_width: int = Field(64, ge=1)  # channels of a head; heads × head_width need not be the width
    hidden: int | None = Field(None, ge=0)  # units of every block's MLP; none: 4 × width
    uneven: tuple[tuple[int, int], ...] | None = Field(
        None, max_length=_MOST
    )  # heads and hidden units of each block, where they differ; then depth, heads and hidden say nothing

    @model_validator(mode="after")
    def _counts(self) -> Tower:
        if any(min(block) < 0 for block in self.uneven or ()):
            raise ValueError("a block has no fewer than 0 heads and 0 hidden units")
        return self

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Heads and hidden units of each block."""
        if self.uneven is not None:
            return self.uneven
        return ((self.heads, 4 * self.width if self.hidden is None else self.hidden),) * self.depth


@spec
class ImageTower(Tower):
    """A vision transformer that is read at its class token."""

    width: int = Field(768, ge=1)  # channels of a token
    heads: int = Field(12, ge=0)  # of the attention of every block
    patch: int = Field(32, ge=1)  # pixels a side
    size: int | None = Field(None, ge=1)  # pixels a side that it sees; none: the data's, or what fills whole patches
    channels: int | None = Field(None, ge=1)  # that it sees; none: the data's. Grey images are shown in three


@spec
class TextTower(Tower):
    """A transformer whose tokens see those before them; it is read at the token that ends a text."""

    context: int = Field(77, ge=3)  # tokens of a text at most, those of start and end among them


@spec
class DualNet:
    """CLIP's architecture (arXiv 2103.00020). Defaults are ViT-B/32's."""

    kind: Literal["dual"] = "dual"
    image: ImageTower = ImageTower()
    text: TextTower = TextTower()
    dimensions: int = Field(512, ge=1)  # of the space where images and texts meet
    activation: Literal["gelu", "quick-gelu"] = "gelu"  # OpenCLIP's, or OpenAI's

    @property
    def label(self) -> str:
        """Short printable name."""
        return f"dual {_shape(self.image)} p{self.image.patch} + {_shape(self.text)}"

    def build(self, channels: int, size: int, vocabulary: int) -> DualEncoder:
        """Build the module for images `[n, channels, size, size]` and tokens below `vocabulary`.

        Raises:
            RecipeError: no channels, pixels or tokens, or the tower sees other channels.
        """
        from attar.nets import dual

        if min(channels, size, vocabulary) < 1:
            raise RecipeError(f"{self.label} needs channels, pixels and tokens; got {channels}, {size}, {vocabulary}")
        return dual.DualEncoder(self, channels, size, vocabulary)

    def side(self, size: int) -> int:
        """Return the pixels a side that the image tower sees of images of `size`."""
        return whole(self.image.size or size, self.image.patch)


def _shape(tower: Tower) -> str:
    return f"w{tower.width} d{len(tower.blocks)}"

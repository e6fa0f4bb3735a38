"""Encoded pictures on their way to tensors: their shape from the header, and their pixels once they are asked for."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from attar.data.arrays import pool
from attar.data.folder import FORMATS, MODES, decode
from attar.errors import DataError

LARGEST = 1 << 26  # bytes of an encoded picture: 64 MiB
Shape = tuple[int, int, int]  # height, width, channels
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def shape_of(data: bytes, name: str) -> Shape:
    """Return height, width and channels of an encoded picture from its header, without decoding it.

    Raises:
        DataError: it is no PNG, JPEG, WebP or BMP picture, or claims more pixels than Pillow deems safe.
    """
    with _opened(data, name) as picture:
        return _shape(picture, name)


@dataclass(frozen=True)
class Look:
    """How stored pictures become pixels: all of one `stored` shape, average-pooled to `size` where that differs."""

    stored: Shape
    size: int

    @classmethod
    def of(cls, shapes: Sequence[Shape], size: int | None, source: str) -> Look:
        """Choose the look of pictures that have these distinct shapes.

        Raises:
            DataError: more than one shape, pictures that are not square, or a `size` that does not divide theirs.
        """
        if len(shapes) > 1:
            raise DataError(
                f"images of {source} differ in size or channels: {', '.join(map(_words, shapes[:3]))}; bring all of"
                " them to one size before they are packed"
            )
        height, width, channels = shapes[0]
        if height != width:
            raise DataError(
                f"images of {source} are {_words(shapes[0])}; images must be square: crop or pad them first"
            )
        if size and size != height:
            pool(torch.zeros(1, 1, height, height, dtype=torch.uint8), size, source)  # refuses what does not divide
        return cls((height, width, channels), size or height)

    @property
    def pooled(self) -> bool:
        """Whether pixels are float32 in [0, 1]; else they are uint8."""
        return self.size != self.stored[0]

    def part(self, limit: int) -> int:
        """Return how many decoded pictures take at most `limit` bytes; at least 1."""
        return max(1, limit // math.prod(self.stored))

    def fill(self, out: Tensor, places: Sequence[int], pictures: Sequence[bytes], names: Sequence[str]) -> None:
        """Decode encoded pictures to `out[places]`; `out` is `[n, C, size, size]` on the CPU.

        Raises:
            DataError: a picture is corrupt, or of another shape than its header had when it was indexed.
        """
        if self.pooled:
            images = torch.empty(len(pictures), self.stored[2], *self.stored[:2], dtype=torch.uint8)
            self._decode(images, range(len(pictures)), pictures, names)
            out[list(places)] = pool(images, self.size, "the stream")
        else:
            self._decode(out, places, pictures, names)

    def _decode(self, out: Tensor, places: Sequence[int], pictures: Sequence[bytes], names: Sequence[str]) -> None:
        into = out.numpy()
        for place, data, name in zip(places, pictures, names, strict=True):
            with _opened(data, name) as picture:
                if (shape := _shape(picture, name)) != self.stored:  # before its pixels are given memory
                    raise DataError(f"{name} is {_words(shape)} where {_words(self.stored)} was indexed")
                into[place] = decode(picture, name).reshape(self.stored).transpose(2, 0, 1)


def _opened(data: bytes, name: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except _BROKEN as error:
        raise DataError(f"{name} cannot be read as a picture: {error}") from None
    # Pillow only warns of these; to make errors of warnings for a moment would be for all threads
    if Image.MAX_IMAGE_PIXELS is not None and picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
        raise DataError(f"{name} cannot be read as a picture: {picture.width} × {picture.height} pixels are too many")
    return picture


def _shape(picture: Image.Image, name: str) -> Shape:
    mode = MODES.get(picture.mode)
    if mode is None:
        raise DataError(f"{name} has colour mode {picture.mode}; save it as 8-bit grey or RGB without transparency")
    return picture.height, picture.width, 3 if mode == "RGB" else 1


def _words(shape: Shape) -> str:
    return f"{shape[1]} × {shape[0]} in {'colour' if shape[2] == 3 else 'grey'}"

"""Pixels as pictures: one image, or many on one sheet, by nearest neighbour so that no pixel is blurred."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attar.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

SIDE = 56  # pixels of a sheet that an image has at least, about
PAPER = (255, 255, 255)  # between the images of a sheet


def contact_sheet(
    images: torch.Tensor, columns: int | None = None, scale: int | None = None, gap: int = 2
) -> Image.Image:
    """Lay images out row by row on one white sheet, as `preview.png` shows a distilled set.

    Args:
        images: `[N, C, H, W]` in [0, 1] (clipped) or uint8; one channel is grey, three are red, green, blue.
        columns: images in a row; without it, the sheet is as square as it can be.
        scale: side of a pixel on the sheet, in pixels; without it 2, and more where images are small.
        gap: space around and between images, in pixels of the sheet.

    Raises:
        DataError: no images, a shape other than `[N, C, H, W]`, or a number of channels that is no picture.
    """
    import numpy as np
    from PIL import Image

    pixels = _bytes(images)
    scale = scale or max(2, SIDE // pixels.shape[2])
    count, height, width = pixels.shape[0], pixels.shape[2] * scale, pixels.shape[3] * scale
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), PAPER, dtype=np.uint8)
    for index, image in enumerate(pixels):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = np.kron(
            image.transpose(1, 2, 0), np.ones((scale, scale, 1), dtype=np.uint8)
        )
    return Image.fromarray(sheet)


def to_pil(image: torch.Tensor) -> Image.Image:
    """Return one image, `[C, H, W]` in [0, 1] (clipped) or uint8, as it is: a pixel for a pixel, grey kept grey.

    Raises:
        DataError: a shape other than `[C, H, W]`, or a number of channels that is no picture.
    """
    from PIL import Image

    pixels = _bytes(image[None] if image.ndim == 3 else image)[0]
    return Image.fromarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0).copy())


def _bytes(images: torch.Tensor) -> np.ndarray:
    """Return `[N, C, H, W]` images as uint8: NaN is black, and what lies outside [0, 1] is clipped."""
    import torch

    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise DataError(
            f"pictures are [N, C, H, W] with 1 (grey) or 3 (red, green, blue) channels; got {tuple(images.shape)}. "
            "Select channels first if the data has others"
        )
    if images.dtype != torch.uint8:
        images = (images.detach().float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    return images.cpu().contiguous().numpy()

"""From arrays in memory to `Images`: every source ends here, so every source is checked alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import Images
from attar.errors import DataError

CHUNK = 8192  # images that are float32 at a time


def from_arrays(
    images: Any,
    labels: Any,
    classes: Sequence[str] | None = None,
    *,
    source: str = "memory",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Images:
    """Make `Images` of NumPy arrays, nested lists or tensors.

    Args:
        images: `[N, H, H]`, `[N, C, H, H]` or `[N, H, H, C]` with 1 to 4 channels; uint8, or floats in [0, 1].
        labels: `[N]` integers 0 … classes - 1, every class present.
        classes: one name a class; by default "0", "1", ….
        source: where they come from, for messages and cards.
        mean: per-channel mean of pixels in [0, 1]; measured from `images` by default.
        std: the same for the standard deviation.

    Raises:
        DataError: no images, not square, other types or ranges, NaN, labels that do not fit, or an empty class.
    """
    pixels = _pixels(images, source)
    numbers = _labels(labels, len(pixels), source)
    names = class_names(numbers, classes, source)
    if mean is None or std is None:
        measured = measure(pixels)
    made_mean = measured[0] if mean is None else torch.tensor(mean, dtype=torch.float32)
    made_std = measured[1] if std is None else torch.tensor(std, dtype=torch.float32)
    return Images(pixels, numbers, names, made_mean, made_std, source=source)


def from_tensors(images: Tensor, labels: Tensor, classes: Sequence[str] | None = None, **options: Any) -> Images:
    """Make `Images` of torch tensors; see `from_arrays`."""
    return from_arrays(images.detach(), labels.detach(), classes, **options)


def measure(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation `[C]` of pixels in [0, 1]; the latter is at least one grey level, 1/255."""
    total = torch.zeros(pixels.shape[1], dtype=torch.float64, device=pixels.device)
    squares = torch.zeros_like(total)
    for part in pixels.split(CHUNK):
        unit = part.double() / (255 if part.dtype == torch.uint8 else 1)
        total += unit.sum((0, 2, 3))
        squares += unit.square().sum((0, 2, 3))
    count = pixels.numel() / pixels.shape[1]
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min((1 / 255) ** 2)
    return mean.float(), variance.sqrt().float()


def pool(pixels: Tensor, size: int, source: str) -> Tensor:
    """Average-pool `[N, C, H, H]` pixels to `size` a side in float32 in [0, 1].

    Raises:
        DataError: `size` does not divide H.
    """
    side = pixels.shape[3]
    if size > side or side % size:
        divisors = [str(n) for n in range(1, side + 1) if side % n == 0 and n >= 4]
        raise DataError(
            f"size={size} does not divide {side}, the size of the images of {source}; average pooling allows"
            f" {', '.join(divisors)}"
        )
    if size == side:
        return pixels
    scale = 255 if pixels.dtype == torch.uint8 else 1
    return torch.cat([F.avg_pool2d(part.float() / scale, side // size) for part in pixels.split(CHUNK)])


def _tensor(values: Any, what: str, source: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.cpu()
    try:
        array = np.asarray(values)
    except ValueError:
        raise DataError(f"{what} of {source} do not form an array: their shapes differ") from None
    if array.dtype.kind not in "buif":
        raise DataError(f"{what} of {source} must be numbers; got {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes little with wide unsigned integers
        array = array.astype(np.int64)
    native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(native))


def _pixels(images: Any, source: str) -> Tensor:
    pixels = _tensor(images, "images", source)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    shape = list(pixels.shape)
    if pixels.ndim != 4 or not len(pixels):
        raise DataError(f"images of {source} must be [N, H, H], [N, C, H, H] or [N, H, H, C] with N ≥ 1; got {shape}")
    if shape[2] != shape[3] or not 1 <= shape[1] <= 4:
        if shape[1] != shape[2] or not 1 <= shape[3] <= 4:
            raise DataError(
                f"images of {source} must be square with 1 to 4 channels; got {shape}; crop or pad them first"
            )
        pixels = pixels.permute(0, 3, 1, 2)
    if not pixels.shape[3]:
        raise DataError(f"images of {source} have no pixels: {shape}")
    if pixels.is_floating_point():
        pixels = pixels.float()
        if not pixels.isfinite().all():
            raise DataError(f"images of {source} hold NaN or infinite pixels")
        low, high = pixels.min().item(), pixels.max().item()
        if low < 0 or high > 1:
            raise DataError(f"float images of {source} must be in [0, 1]; got {low:.4g} … {high:.4g}; divide by 255?")
    elif pixels.dtype != torch.uint8:
        raise DataError(f"images of {source} must be uint8, or floats in [0, 1]; got {pixels.dtype}; cast them first")
    return pixels.contiguous()


def _labels(labels: Any, count: int, source: str) -> Tensor:
    numbers = _tensor(labels, "labels", source)
    if numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise DataError(f"labels of {source} must be integers; got {numbers.dtype}")
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    if numbers.ndim != 1 or len(numbers) != count:
        raise DataError(f"labels of {source} must be one per image, [{count}]; got {list(numbers.shape)}")
    return numbers.long()


def class_names(labels: Tensor, classes: Sequence[str] | None, source: str) -> tuple[str, ...]:
    """Return one name a class of `labels` `[N]` int64: `classes`, else "0", "1", ….

    Raises:
        DataError: a label below 0 or behind the last class, or a class without an image.
    """
    low, high = int(labels.min()), int(labels.max())
    # A huge label must not become a huge table: with every class present there are no more classes than images.
    expected = len(classes) if classes is not None else min(high + 1, len(labels))
    if low < 0 or high >= expected:
        raise DataError(f"labels of {source} must run from 0 to {expected - 1}, every one present; got {low} … {high}")
    names = tuple(str(name) for name in classes) if classes is not None else tuple(str(n) for n in range(expected))
    missing = [names[n] for n, images in enumerate(torch.bincount(labels, minlength=expected).tolist()) if not images]
    if missing:
        raise DataError(f"{source} has no image of class {', '.join(missing[:5])}; every class needs at least one")
    return names

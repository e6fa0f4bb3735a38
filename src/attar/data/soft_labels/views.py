"""Views of images that replay: crop, flip and mix as pure functions of (key, sample, view), so that they cost no bytes.

The random numbers are a hash of (key, sample, view, slot), not a generator's stream: the parameters of any row can be
computed alone, in any batch and any order, and stay the same whatever the version of torch. A partner to mix with is a
sample of the whole set, drawn by the same hash, not a neighbour in the batch: so a replayed batch may hold any rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional

from attar.data.augment import Parameters, View, augmentation
from attar.data.plans import Source
from attar.errors import RecipeError
from attar.spec import spec

ATTEMPTS = 10  # boxes drawn for a crop before the whole picture is taken; torchvision's number
CROP, FLIP, PARTNER, MIX, SHARE, PASTE, AUGMENT = 0, 32, 33, 34, 35, 36, 38  # first slot of each draw


@dataclass(frozen=True, eq=False)
class Drawn:
    """The parameters of `n` views: integers and shares, exact on replay.

    Attributes:
        box: `[n, 4]` int64, top, left, height and width of the crop, in pixels.
        mirrored: `[n]` bool.
        partner: `[n]` int64, the sample mixed in; the sample itself where nothing is mixed.
        share: `[n]` float32 in [0, 1], the weight of the sample itself in MixUp; 1 where nothing is mixed.
        paste: `[n, 4]` int64, top, left, height and width of the partner's rectangle in CutMix; empty without.
    """

    box: Tensor
    mirrored: Tensor
    partner: Tensor
    share: Tensor
    paste: Tensor


@spec
class Views:
    """What a teacher is shown of each image. Defaults are FKD's (Shen & Xing 2022, arXiv 2112.01528)."""

    scale: tuple[float, float] = (0.08, 1.0)  # share of the picture's area in a crop, drawn uniformly
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of a crop, drawn uniformly in its logarithm
    flip: float = Field(0.5, ge=0, le=1)  # chance of mirroring left and right
    augment: str = "none"  # dsa and its kin (`attar.data.augmentation`), drawn for each image, behind crop and flip
    mix: Literal["none", "mixup", "cutmix"] = "none"  # SRe2L relabels with cutmix (arXiv 2306.13092)
    mix_alpha: float = Field(1.0, gt=0)  # own share ~ Beta(alpha, alpha); 1 is uniform
    mix_probability: float = Field(1.0, ge=0, le=1)  # chance that a view is mixed at all

    @field_validator("augment")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            augmentation(name)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return name

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale needs 0 < low ≤ high ≤ 1; got {self.scale}")
        check_ratio(self.ratio)
        return self

    def draw(self, key: int, samples: Tensor, views: Tensor, *, count: int, size: int) -> Drawn:
        """Return the parameters of the views of `samples` `[n]` numbered `views` `[n]`.

        Args:
            key: seed of all views of a store, in [0, 2⁶³).
            samples: int64 in [0, count).
            views: int64, at least 0.
            count: samples in the set, from which partners are drawn.
            size: pixels a side.
        """
        stream = _Stream(key, samples, views)
        box = torch.from_numpy(self._boxes(stream, size))
        mirrored = torch.from_numpy(stream.uniform(FLIP) < self.flip)
        if self.mix == "none":
            return Drawn(box, mirrored, samples, torch.ones(len(samples)), torch.zeros(len(samples), 4).long())
        mixed = stream.uniform(MIX) < self.mix_probability
        partner = np.where(mixed, (stream.uniform(PARTNER) * count).astype(np.int64), samples.numpy())
        share = np.where(mixed, self._beta(stream.uniform(SHARE)), 1.0)
        paste = _rectangle(stream, share, size) if self.mix == "cutmix" else np.zeros((len(samples), 4), np.int64)
        return Drawn(box, mirrored, *map(torch.from_numpy, (partner, share.astype(np.float32), paste)))

    def images(self, source: Source, key: int, samples: Tensor, views: Tensor) -> Tensor:
        """Return the views `[n, C, H, W]` of images of a source, in the space that networks see."""
        count, size = len(source), source.size
        drawn = self.draw(key, samples, views, count=count, size=size)
        own = self._shown(source, drawn, key, samples, views)
        if self.mix == "none":
            return own
        theirs = self.draw(key, drawn.partner, views, count=count, size=size)  # its own crop of the same view
        other = self._shown(source, theirs, key, drawn.partner, views)
        return mixup(own, other, drawn.share) if self.mix == "mixup" else cutmix(own, other, drawn.paste)

    def _shown(self, source: Source, drawn: Drawn, key: int, samples: Tensor, views: Tensor) -> Tensor:
        """Return images before any mixing."""
        x = flip(crop(source.batch(samples)[0], drawn.box), drawn.mirrored)
        augment = augmentation(self.augment)
        if augment.is_identity:
            return x
        rows: dict[tuple[str, ...], list[int]] = {}  # by the names of what is done to them, to do it to all at once
        done = []
        for row, seed in enumerate(_Stream(key, samples, views).seeds(AUGMENT)):
            done.append(augment.draw(1, tuple(x.shape[1:]), torch.Generator().manual_seed(seed)).operations)
            rows.setdefault(tuple(name for name, _ in done[-1]), []).append(row)
        out = x.clone()
        for picked in rows.values():
            out[picked] = _joined([done[row] for row in picked])(x[picked])
        return out

    def _boxes(self, stream: _Stream, size: int) -> np.ndarray:
        """Draw boxes as RandomResizedCrop does: the first of ten that fits; here the whole picture if none does."""
        boxes = np.tile(np.array([0, 0, size, size]), (stream.n, 1))
        found = np.zeros(stream.n, bool)
        for attempt in range(ATTEMPTS):
            if found.all():
                break
            area, aspect = stream.uniform(CROP + 2 * attempt), stream.uniform(CROP + 2 * attempt + 1)
            area = size * size * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            low, high = np.log(self.ratio)
            aspect = np.exp(low + aspect * (high - low))
            height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
            width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
            fits = ~found & (height >= 1) & (height <= size) & (width >= 1) & (width <= size)
            top = (stream.uniform(CROP + 20) * (size - height + 1)).astype(np.int64)
            left = (stream.uniform(CROP + 21) * (size - width + 1)).astype(np.int64)
            boxes[fits] = np.stack([top, left, height, width], 1)[fits]
            found |= fits
        return boxes

    def _beta(self, u: np.ndarray) -> np.ndarray:
        if self.mix_alpha == 1.0:
            return u
        from scipy.special import betaincinv

        return np.asarray(betaincinv(self.mix_alpha, self.mix_alpha, u))


class _Stream:
    """Uniform numbers that depend on (key, sample, view, slot) alone: SplitMix64's mixing (Steele et al. 2014)."""

    def __init__(self, key: int, samples: Tensor, views: Tensor) -> None:
        self.n = len(samples)
        start = _mixed(np.array([key], np.uint64))
        self._state = _mixed(_mixed(start ^ samples.numpy().astype(np.uint64)) ^ views.numpy().astype(np.uint64))

    def uniform(self, slot: int) -> np.ndarray:
        """Return float64 `[n]` in [0, 1), 53 bits each."""
        return (_mixed(self._state ^ np.uint64(slot)) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def seeds(self, slot: int) -> list[int]:
        """Return `n` seeds of generators, 63 bits each."""
        return [int(value) for value in _mixed(self._state ^ np.uint64(slot)) >> np.uint64(1)]


def _joined(views: list[tuple[tuple[str, Parameters], ...]]) -> View:
    """Make one view of n images out of n views of one image each that do the same things in the same order."""
    joined = []
    for place, (name, first) in enumerate(views[0]):
        values = {key: [view[place][1][key] for view in views] for key in first}
        joined.append((name, {key: torch.cat(each) if each[0].ndim else each[0] for key, each in values.items()}))
    return View(tuple(joined))


def check_ratio(ratio: tuple[float, float]) -> None:
    """Raise ValueError where no crop has such a width over its height; far beyond 1 its sides would not be numbers."""
    if not 1e-3 <= ratio[0] <= ratio[1] <= 1e3:
        raise ValueError(f"ratio needs 0.001 ≤ low ≤ high ≤ 1000; got {ratio}")


def crop(x: Tensor, box: Tensor) -> Tensor:
    """Resize the rectangle `box` `[n, 4]` of each of `x` `[n, C, S, S]` to the full size, bilinear.

    Each image is sampled at the centres of S × S cells of its rectangle; beyond the picture its edge is repeated. The
    grid is made by products and sums of single numbers, so a row comes out alike in any batch.
    """
    size = x.shape[-1]
    centres = (torch.arange(size) + 0.5) / size
    top, left, height, width = box.float().unbind(1)
    rows = (centres * height[:, None] + top[:, None]) * (2 / size) - 1
    columns = (centres * width[:, None] + left[:, None]) * (2 / size) - 1
    shape = (len(x), size, size)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], -1).to(x.device, x.dtype)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def flip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right where `mirrored` `[n]`."""
    return torch.where(mirrored[:, None, None, None].to(x.device), x.flip(3), x)


def mixup(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return share · x + (1 − share) · other, `share` `[n]` (Zhang et al. 2018, arXiv 1710.09412)."""
    share = share[:, None, None, None].to(x.device, x.dtype)
    return share * x + (1 - share) * other


def cutmix(x: Tensor, other: Tensor, paste: Tensor) -> Tensor:
    """Return x with the rectangle `paste` `[n, 4]` of other in its place (Yun et al. 2019, arXiv 1905.04899)."""
    top, left, height, width = (value[:, None] for value in paste.unbind(1))
    row, column = torch.arange(x.shape[2]), torch.arange(x.shape[3])
    in_rows, in_columns = (row >= top) & (row < top + height), (column >= left) & (column < left + width)
    return torch.where((in_rows[:, :, None] & in_columns[:, None, :])[:, None].to(x.device), other, x)


def _rectangle(stream: _Stream, share: np.ndarray, size: int) -> np.ndarray:
    """Return CutMix rectangles of area (1 − share) · size², clipped at the border, about a uniform centre."""
    side = (size * np.sqrt(1 - share)).astype(np.int64)
    edges = []
    for slot in (PASTE, PASTE + 1):
        start = (stream.uniform(slot) * size).astype(np.int64) - side // 2
        edges.append((start.clip(0, size), (start + side).clip(0, size)))
    (top, bottom), (left, right) = edges
    return np.stack([top, left, bottom - top, right - left], 1)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Return SplitMix64's output function of uint64 `x`; a bijection, wrapping at 2⁶⁴."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

"""Differentiable augmentation: six operations on batches, drawn once and replayable.

Zhao & Bilen 2021, "Dataset Condensation with Differentiable Siamese Augmentation" (arXiv 2102.08259). The operations
are pure functions of a batch and parameter tensors; `DSA.draw` draws the parameters, and the `View` it returns applies
them to any batch: to real and synthetic images alike in the Siamese case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import RecipeError, did_you_mean

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
CROP_RATIO = 0.125  # of a side, the largest shift
CUTOUT_RATIO = 0.5  # of a side, the square's side
SCALE_RATIO = 1.2  # the largest factor; the smallest is its inverse
ROTATE_DEGREES = 15.0

Parameters = Mapping[str, Tensor]


def color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast of `x` `[n, C, H, W]`, with parameters `[n]` or `[1]`.

    `x + brightness`; `(x - m)·saturation + m` with m the mean over channels; `(x - m)·contrast + m` with m the mean
    over channels and pixels of each image. On one channel saturation is the identity.
    """
    x = x + _per_image(brightness, x)
    if x.shape[1] > 1:
        grey = x.mean(1, keepdim=True)
        x = (x - grey) * _per_image(saturation, x) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * _per_image(contrast, x) + mean


def crop(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Shift: `out[i, j] = x[i + rows, j + columns]`, zero outside; integer parameters `[n]` or `[1]`."""
    height, width = x.shape[2:]
    if len(rows) == 1:
        down, right = int(rows), int(columns)
        return F.pad(x, (-right, right, -down, down))  # negative padding crops
    reach = int(max(rows.abs().max(), columns.abs().max()))
    padded = F.pad(x, (reach, reach, reach, reach))
    row = (rows[:, None, None, None] + reach + torch.arange(height)[:, None]).to(x.device)
    column = (columns[:, None, None, None] + reach + torch.arange(width)).to(x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return padded[image, channel, row, column]


def cutout(x: Tensor, rows: Tensor, columns: Tensor, side: Tensor) -> Tensor:
    """Zero a square of `side` pixels, from `side // 2` above and left of (rows, columns), clipped at the borders."""
    height, width = x.shape[2:]
    row = torch.arange(height) - (rows[:, None] - side // 2)
    column = torch.arange(width) - (columns[:, None] - side // 2)
    inside = ((row >= 0) & (row < side))[:, :, None] & ((column >= 0) & (column < side))[:, None, :]
    return x.masked_fill(inside[:, None].to(x.device), 0)


def flip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right where `mirrored`, a boolean `[n]` or `[1]`."""
    if len(mirrored) == 1:
        return x.flip(3) if bool(mirrored) else x
    return torch.where(mirrored[:, None, None, None].to(x.device), x.flip(3), x)


def scale(x: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Sample `x` at coordinates times the factors (above 1 shrinks the picture), bilinear, zero outside."""
    zero = torch.zeros_like(horizontal)
    return _sample(x, torch.stack([horizontal, zero, zero, zero, vertical, zero], 1))


def rotate(x: Tensor, radians: Tensor) -> Tensor:
    """Sample `x` on a grid turned by `radians` about the centre, bilinear, zero outside."""
    cosine, sine, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    return _sample(x, torch.stack([cosine, -sine, zero, sine, cosine, zero], 1))


@dataclass(frozen=True, eq=False)
class View:
    """A drawn augmentation: a differentiable function of a batch `[n, C, H, W]` that gives the same result every time.

    `operations` are (name, parameters) in the order in which they are applied, none for the identity. Parameters are
    CPU tensors: `[1]` in a Siamese view, which then takes a batch of any size, and `[n]` otherwise.
    """

    operations: tuple[tuple[str, Parameters], ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the view.

        Raises:
            ValueError: the view was drawn for another number of images.
        """
        for name, parameters in self.operations:
            for value in parameters.values():
                if value.ndim and len(value) not in (1, len(x)):
                    raise ValueError(f"this view was drawn for {len(value)} images and cannot be applied to {len(x)}")
            x = _FUNCTIONS[name](x, **parameters)
        return x

    def state(self) -> list[list[Any]]:
        """Return the view as JSON values; `View.from_state` makes it again, exactly."""
        return [[name, {key: value.tolist() for key, value in p.items()}] for name, p in self.operations]

    @classmethod
    def from_state(cls, state: list[list[Any]]) -> View:
        """Make a view of what `state` returned."""
        return cls(tuple((name, {key: torch.tensor(value) for key, value in p.items()}) for name, p in state))


@dataclass(frozen=True)
class DSA:
    """Draws one of the operations of `strategy`, with equal chances, for a whole batch at a time.

    Ranges, with u ~ U[0, 1), in the normalised space: brightness u - 0.5; saturation 2u; contrast u + 0.5; crop shifts
    of up to int(H/8 + 0.5) pixels either way; cutout of a square of side int(H/2 + 0.5); flip with p = 0.5; scale
    factors U[1/1.2, 1.2] in either direction; rotation U[-15°, 15°]. What is cut or moved out becomes 0, the mean of
    the data, not black.
    Zhao & Bilen 2021 (arXiv 2102.08259).

    Attributes:
        strategy: operations joined by `_`, or `none`.
        always_flip: take flip out of the choice and apply it, with p = 0.5, before every draw (arXiv 2407.08113).

    Raises:
        RecipeError: an operation that does not exist, or one named twice.
    """

    strategy: str = "color_crop_cutout_flip_scale_rotate"
    always_flip: bool = False

    def __post_init__(self) -> None:
        names = () if self.strategy == "none" else tuple(self.strategy.split("_"))
        for name in names:
            if name not in OPERATIONS:
                hint = did_you_mean(name, OPERATIONS)
                raise RecipeError(
                    f"unknown augmentation '{name}' in '{self.strategy}'{hint} Known: {', '.join(OPERATIONS)}"
                )
        if len(set(names)) < len(names):
            raise RecipeError(f"augmentation '{self.strategy}' names an operation twice; each has the same chance")

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that one is chosen from, in the order of the strategy."""
        names = () if self.strategy == "none" else tuple(self.strategy.split("_"))
        return tuple(name for name in names if not (self.always_flip and name == "flip"))

    @property
    def is_identity(self) -> bool:
        """Whether no view changes anything."""
        return not self.operations and not self.always_flip

    def draw(self, n: int, shape: tuple[int, ...], rng: torch.Generator, siamese: bool = False) -> View:
        """Draw a view for `n` images of `shape` (C, H, W).

        The operation is drawn once for the batch; its parameters once per image, or once for all where `siamese`.
        """
        count = 1 if siamese else n
        drawn: list[tuple[str, Parameters]] = []
        if self.always_flip:
            drawn.append(("flip", _draw("flip", count, shape, rng)))
        if names := self.operations:
            name = names[int(torch.randint(len(names), (), generator=rng))]
            drawn.append((name, _draw(name, count, shape, rng)))
        return View(tuple(drawn))


NAMED = {
    "none": DSA("none"),
    "dsa": DSA(),
    "dsa-noflip": DSA("color_crop_cutout_scale_rotate"),  # digits, text: a mirrored 2 is no 2
    "dsa-always-flip": DSA(always_flip=True),
    "flip": DSA("flip"),
    "crop-and-flip": DSA("crop", always_flip=True),  # both, where a strategy takes one of its operations
}


def augmentation(name: str) -> DSA:
    """Return the augmentation that `name` stands for: one of `NAMED`, or a strategy.

    Raises:
        RecipeError: unknown name or operation.
    """
    if name in NAMED:
        return NAMED[name]
    if "_" not in name and name not in OPERATIONS:
        hint = did_you_mean(name, [*NAMED, *OPERATIONS])
        known = f"{', '.join(NAMED)}, or operations joined by '_': {', '.join(OPERATIONS)}"
        raise RecipeError(f"unknown augmentation '{name}'{hint} Known: {known}")
    return DSA(name)


def _draw(name: str, count: int, shape: tuple[int, ...], rng: torch.Generator) -> Parameters:
    """Draw the parameters `[count]` of one operation."""
    height, width = shape[-2:]

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=rng) * (high - low) + low

    def integers(low: int, high: int) -> Tensor:  # both ends included
        return torch.randint(low, high + 1, (count,), generator=rng)

    match name:
        case "color":
            return {"brightness": uniform(-0.5, 0.5), "saturation": uniform(0, 2), "contrast": uniform(0.5, 1.5)}
        case "crop":
            down, right = int(CROP_RATIO * height + 0.5), int(CROP_RATIO * width + 0.5)
            return {"rows": integers(-down, down), "columns": integers(-right, right)}
        case "cutout":
            side = int(CUTOUT_RATIO * height + 0.5)
            last = height - side % 2  # an even square has no middle pixel, so its centre may lie behind the last one
            return {"rows": integers(0, last), "columns": integers(0, last), "side": torch.tensor(side)}
        case "flip":
            return {"mirrored": torch.rand(count, generator=rng) < 0.5}
        case "scale":
            low, high = 1 / SCALE_RATIO, SCALE_RATIO
            return {"horizontal": uniform(low, high), "vertical": uniform(low, high)}
        case _:
            limit = math.radians(ROTATE_DEGREES)
            return {"radians": uniform(-limit, limit)}


def _sample(x: Tensor, theta: Tensor) -> Tensor:
    """Sample `x` `[n, C, H, W]` on affine grids `theta` `[n or 1, 6]`, align_corners off as in the paper's code."""
    theta = theta.to(x.device, x.dtype).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, [len(theta), *x.shape[1:]], align_corners=False)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="zeros", align_corners=False)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.device, x.dtype)[:, None, None, None]


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}

"""Augmentation policies for 8-bit pictures, as DC-BENCH judges sets under them: one draw for a whole batch.

Batches are float32 `[n, C, S, S]` of whole numbers in [0, 255]. The operations are those of Pillow, to within one grey
level (Cubuk et al. 2019, AutoAugment, arXiv 1805.09501; 2020, RandAugment, arXiv 1909.13719).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from attar.data.augment import cutout, flip

Policy = Literal["none", "autoaug", "randaug", "cifar", "imagenet"]
Step = tuple[str, float]  # an operation and its magnitude

FARTHEST = 150 / 331  # of a side, the largest translation
LUMINANCE = (0.299, 0.587, 0.114)
SIGNED = frozenset({"shear x", "shear y", "move x", "move y", "rotate", "brightness", "color", "contrast", "sharpness"})

JITTER = {"brightness": 0.4, "contrast": 0.4, "color": 0.4, "hue": 0.2}  # DC-BENCH's for ImageNet

# the policy found for CIFAR-10 (arXiv 1805.09501, table 7): two (operation, chance in tenths, magnitude 0 to 9)
CIFAR10 = """
invert 1 0, contrast 2 6 | rotate 7 2, move x 3 9 | sharpness 8 1, sharpness 9 3 | shear y 5 8, move y 7 9
autocontrast 5 0, equalize 9 0 | shear y 2 7, posterize 3 7 | color 4 3, brightness 6 7 | sharpness 3 9, brightness 7 9
equalize 6 0, equalize 5 0 | contrast 6 7, sharpness 6 5 | color 7 7, move x 5 8 | equalize 3 0, autocontrast 4 0
move y 4 3, sharpness 2 6 | brightness 9 6, color 2 8 | solarize 5 2, invert 0 0 | equalize 2 0, autocontrast 6 0
equalize 2 0, equalize 6 0 | color 9 9, equalize 6 0 | autocontrast 8 0, solarize 2 8 | brightness 1 3, color 7 0
solarize 4 5, autocontrast 9 0 | move y 9 9, move y 7 9 | autocontrast 9 0, solarize 8 3 | equalize 8 0, invert 1 0
move y 7 9, autocontrast 9 0
"""
RANDAUGMENT = (
    *("identity", "shear x", "shear y", "move x", "move y", "rotate", "brightness"),
    *("color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
RANDAUGMENT_MAGNITUDE = 9 / 30  # of the largest; its usual 9 of 31


def magnitude(name: str, share: float, size: int) -> float:
    """Return how strong an operation is at a share in [0, 1] of its range, for pictures of `size` pixels a side.

    Shear to 0.3, translation to 150/331 of the side (whole pixels), rotation to 30°, the four enhancements to 0.9,
    posterising from 8 bits down to 4, solarising from 255 down to 0.
    """
    match name:
        case "shear x" | "shear y":
            return 0.3 * share
        case "move x" | "move y":
            return float(int(FARTHEST * size * share))
        case "rotate":
            return 30 * share
        case "posterize":
            return 8.0 - round(4 * share)
        case "solarize":
            return 255 * (1 - share)
        case _:
            return 0.9 * share


def draw(policy: Policy, size: int, rng: torch.Generator) -> list[Step]:
    """Draw what is done, one after another, to a batch of pictures of `size` pixels a side."""
    if policy in ("cifar", "imagenet"):
        steps = _moves(size, rng)
        return steps + (_jitter(rng) if policy == "imagenet" else [_cutout(size, rng)])
    if policy == "randaug":
        name = RANDAUGMENT[int(torch.randint(len(RANDAUGMENT), (), generator=rng))]
        return [_signed(name, magnitude(name, RANDAUGMENT_MAGNITUDE, size), rng)]
    if policy == "none":
        return []
    pairs = [pair.split(", ") for line in CIFAR10.strip().splitlines() for pair in line.split(" | ")]
    steps = []
    for told in pairs[int(torch.randint(len(pairs), (), generator=rng))]:
        name, chance, level = told.rsplit(" ", 2)
        step = _signed(name, magnitude(name, int(level) / 9, size), rng)
        if float(torch.rand((), generator=rng)) < int(chance) / 10:
            steps.append(step)
    return steps


def _moves(size: int, rng: torch.Generator) -> list[Step]:
    """Draw a shift by up to an eighth of the side either way (four pixels at 32), and a flip."""
    reach = size // 8
    shifts = torch.randint(-reach, reach + 1, (2,), generator=rng).tolist()
    mirrored = float(torch.rand((), generator=rng) < 0.5)
    return [("move x", float(shifts[0])), ("move y", float(shifts[1])), ("flip", mirrored)]


def _cutout(size: int, rng: torch.Generator) -> Step:
    row, column = torch.randint(0, size, (2,), generator=rng).tolist()
    return "cutout", float(row * size + column)


def _jitter(rng: torch.Generator) -> list[Step]:
    """Draw changes of colour, each from −x to x, in a random order."""
    drawn = [(name, float(torch.rand((), generator=rng) * 2 - 1) * most) for name, most in JITTER.items()]
    return [drawn[place] for place in torch.randperm(len(drawn), generator=rng).tolist()]


def apply(x: Tensor, steps: list[Step]) -> Tensor:
    """Return pictures `[n, C, S, S]` in [0, 255] with these operations done to all of them."""
    for name, strength in steps:
        x = _OPERATIONS[name](x, strength)
    return x


def _signed(name: str, strength: float, rng: torch.Generator) -> Step:
    negative = bool(torch.rand((), generator=rng) < 0.5)
    return name, -strength if name in SIGNED and negative else strength


def moved(x: Tensor, matrix: tuple[float, float, float, float, float, float]) -> Tensor:
    """Return the nearest pixel at (a·u + b·v + c, d·u + e·v + f) for every pixel's centre (u, v), black outside."""
    size = x.shape[-1]
    a, b, c, d, e, f = matrix
    centre = torch.arange(size, dtype=torch.float64) + 0.5
    v, u = centre[:, None], centre[None, :]
    column, row = (a * u + b * v + c).floor().long(), (d * u + e * v + f).floor().long()
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    found = x[:, :, row.clamp(0, size - 1).to(x.device), column.clamp(0, size - 1).to(x.device)]
    return found * inside.to(x)


def turned(x: Tensor, degrees: float) -> Tensor:
    """Rotate counterclockwise about the centre."""
    sine, cosine, middle = math.sin(math.radians(degrees)), math.cos(math.radians(degrees)), x.shape[-1] / 2
    shift_u, shift_v = middle - middle * cosine + middle * sine, middle - middle * sine - middle * cosine
    return moved(x, (cosine, -sine, shift_u, sine, cosine, shift_v))


def grey(x: Tensor) -> Tensor:
    """Return luminance `[n, 1, S, S]`, rounded; the mean of channels where they are not red, green and blue."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True).round()
    return (x * torch.tensor(LUMINANCE, device=x.device)[:, None, None]).sum(1, keepdim=True).round()


def blended(x: Tensor, plain: Tensor, factor: float) -> Tensor:
    """Return plain + factor · (x − plain), rounded and clipped: 0 is plain, 1 the picture, more exaggerates it."""
    return (plain + factor * (x - plain)).round().clamp(0, 255)


def recoloured(x: Tensor, share: float) -> Tensor:
    """Turn the hue of red, green and blue by a share of the whole circle, with saturation and value as they are."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.unbind(1)
    value, spread = x.amax(1), x.amax(1) - x.amin(1)
    safe = spread.clamp_min(1e-6)
    sector = torch.where(
        value == red,
        ((green - blue) / safe) % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    places = (torch.tensor((5.0, 3.0, 1.0), device=x.device)[:, None, None] + sector[:, None] + 6 * share) % 6
    out = value[:, None] - spread[:, None] * torch.minimum(places, 4 - places).clamp(0, 1)
    return out.round().clamp(0, 255)


def smoothed(x: Tensor) -> Tensor:
    """Return a 3×3 mean with five times the weight in the middle; the border stays."""
    if min(x.shape[2:]) < 3:
        return x
    kernel = torch.ones(x.shape[1], 1, 3, 3, device=x.device)
    kernel[:, :, 1, 1] = 5
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = (functional.conv2d(x, kernel / 13, groups=x.shape[1])).round()
    return out


def stretched(x: Tensor) -> Tensor:
    """Map the darkest pixel of each channel of each picture to 0 and the brightest to 255."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, ((x - low) * 255 / (high - low).clamp_min(1)).floor().clamp(0, 255), x)


def equalized(x: Tensor) -> Tensor:
    """Spread the grey levels of each channel of each picture evenly."""
    flat = x.flatten(0, 1).flatten(1).long()
    counts = torch.zeros(len(flat), 256, dtype=torch.int64, device=x.device).scatter_add_(
        1, flat, torch.ones_like(flat)
    )
    last = torch.where(counts > 0, torch.arange(256, device=x.device), -1).amax(1, keepdim=True)
    step = (flat.shape[1] - counts.gather(1, last)) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp(0, 255)
    return torch.where(step > 0, table.gather(1, flat), flat).view_as(x).to(x)


def _hole(x: Tensor, place: float) -> Tensor:
    row, column = divmod(int(place), x.shape[-1])
    return cutout(x, torch.tensor([row]), torch.tensor([column]), torch.tensor(x.shape[-1] // 2))


_OPERATIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda x, m: x,
    "shear x": lambda x, m: moved(x, (1, m, 0, 0, 1, 0)),
    "shear y": lambda x, m: moved(x, (1, 0, 0, m, 1, 0)),
    "move x": lambda x, m: moved(x, (1, 0, m, 0, 1, 0)),
    "move y": lambda x, m: moved(x, (1, 0, 0, 0, 1, m)),
    "rotate": turned,
    "brightness": lambda x, m: blended(x, torch.zeros_like(x), 1 + m),
    "color": lambda x, m: blended(x, grey(x), 1 + m),
    "contrast": lambda x, m: blended(x, grey(x).mean((2, 3), keepdim=True).round(), 1 + m),
    "sharpness": lambda x, m: blended(x, smoothed(x), 1 + m),
    "posterize": lambda x, m: x - x % 2 ** (8 - m),
    "solarize": lambda x, m: torch.where(x >= m, 255 - x, x),
    "autocontrast": lambda x, m: stretched(x),
    "equalize": lambda x, m: equalized(x),
    "invert": lambda x, m: 255 - x,
    "hue": recoloured,
    "flip": lambda x, m: flip(x, torch.tensor([m > 0])),
    "cutout": _hole,
}

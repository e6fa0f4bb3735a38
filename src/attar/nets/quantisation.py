"""Weights of few values: buckets with their own scale, levels that are even or learned, codes and their size.

A tensor is cut into buckets of consecutive values; bucket by bucket v = scale · u + shift with u in [0, 1], and u is
replaced by one of a few points (Polino et al. 2018, arXiv 1802.05668, section 2).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Rounding = Literal["nearest", "stochastic"]
Through = Literal["straight", "scales"]

SMALLEST = 1e-10  # a bucket whose values differ by less is constant


@dataclass(frozen=True)
class Coded:
    """A tensor as codes: value = scale[bucket] · points[code] + shift[bucket].

    Attributes:
        codes: `[values]` uint8, which point each value takes.
        scale, shift: `[buckets]`; every bucket but the last has ⌈values / buckets⌉ values, or `bucket` of them.
        points: `[levels]`, ascending in [0, 1].
        bucket: values a bucket; none: one bucket.
        shape: of the tensor.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor
    points: Tensor
    bucket: int | None
    shape: tuple[int, ...]

    def decode(self) -> Tensor:
        """Return the tensor."""
        rows = buckets(self.points[self.codes.long()], self.bucket)
        return (rows * self.scale[:, None] + self.shift[:, None]).flatten()[: len(self.codes)].reshape(self.shape)


def buckets(values: Tensor, size: int | None) -> Tensor:
    """Return the values in rows of `size`, the last row filled up with the last value; one row without a size."""
    flat = values.flatten()
    if size is None or size >= len(flat):
        return flat[None]
    missing = -len(flat) % size
    return torch.cat([flat, flat[-1:].expand(missing)]).reshape(-1, size)


def scaled(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (u in [0, 1], scale, shift) of each row, v = scale · u + shift: scale = max − min, shift = min.

    A constant row has the scale 1. Gradients pass through all three, each extreme to one element.
    """
    low, high = rows.min(1, keepdim=True).values, rows.max(1, keepdim=True).values
    spread = high - low
    scale = torch.where(spread < SMALLEST, torch.ones_like(spread), spread)
    return (rows - low) / scale, scale, low


def even_points(levels: int) -> Tensor:
    """Return `levels` points from 0 to 1 at equal distances."""
    return torch.linspace(0, 1, levels)


def quantile_points(unit: Tensor, levels: int) -> Tensor:
    """Return the points that hold equally many of the values u: the quantiles (j + ½) / levels, ascending."""
    values = unit.detach().flatten().sort().values
    places = ((torch.arange(levels) + 0.5) / levels * len(values)).long().clamp(max=len(values) - 1)
    return values[places.to(values.device)].clone()


def nearest(unit: Tensor, points: Tensor) -> Tensor:
    """Return the number of the nearest of the ascending points for each value; a tie goes to the lower one."""
    return torch.bucketize(unit.detach(), (points[1:] + points[:-1]) / 2)


def drawn(unit: Tensor, points: Tensor, rng: torch.Generator) -> Tensor:
    """Return the number of one of the two points around each value, so drawn that its expectation is the value."""
    lower = (torch.searchsorted(points, unit.contiguous(), right=True) - 1).clamp(0, len(points) - 2)
    left, right = points[lower], points[lower + 1]
    share = ((unit - left) / (right - left).clamp_min(SMALLEST)).clamp(0, 1)
    return lower + (torch.rand(unit.shape, generator=rng).to(unit.device) < share).long()


def allotted(norms: Sequence[float], levels: int) -> list[int]:
    """Return how many points each tensor gets: half of `levels`, and a share of the rest by its gradient's norm.

    The shares add up to the other half times the number of tensors; every tensor has two points or more.
    """
    total = sum(norms)
    rest = (levels - levels // 2) * len(norms)
    shares = [rest * norm / total if total else rest / len(norms) for norm in norms]
    return [min(max(2, levels // 2 + math.floor(share)), 256) for share in shares]


def code_lengths(counts: Sequence[int]) -> list[int]:
    """Return the length in bits of each symbol's Huffman code; a lone symbol takes one bit, an absent one none.

    >>> code_lengths([4, 2, 1, 1])
    [1, 2, 3, 3]
    """
    lengths = [0] * len(counts)
    heap = [(count, [symbol]) for symbol, count in enumerate(counts) if count]
    if len(heap) == 1:
        lengths[heap[0][1][0]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (one, left), (other, right) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in left + right:
            lengths[symbol] += 1
        heapq.heappush(heap, (one + other, left + right))
    return lengths


def stored_bytes(tensors: Mapping[str, Coded]) -> int:
    """Return the bytes that coded tensors take: Huffman codes of all of them together, scales, shifts and points."""
    if not tensors:
        return 0
    counts = torch.zeros(256, dtype=torch.long)
    for one in tensors.values():
        counts += torch.bincount(one.codes.long(), minlength=256)
    lengths = torch.tensor(code_lengths(counts.tolist()))
    numbers = sum(2 * one.scale.numel() + one.points.numel() for one in tensors.values())
    return math.ceil(int((lengths * counts).sum()) / 8) + 4 * numbers


class Quantised(nn.Module):
    """A parametrisation that replaces a parameter by its quantised value; the parameter behind it stays float.

    Args:
        points: `[levels]` in [0, 1]; they may be learned, and are sorted when they are used.
        bucket: values a bucket; none: one bucket.
        rounding: to the nearest point, or drawn so that the expectation is right (while training; nearest else).
        through: how the parameter gets its gradient: as if nothing was rounded and scales were fixed, or through the
            scales as well.
        clamp: values are cut to [−1, 1] first, and what lies outside gets no gradient.
    """

    def __init__(
        self,
        points: Tensor,
        bucket: int | None,
        *,
        rounding: Rounding = "nearest",
        through: Through = "straight",
        clamp: bool = False,
    ) -> None:
        super().__init__()
        self.points = points  # a parameter, or a tensor that another learner holds
        self.bucket, self.rounding, self.through, self.clamp = bucket, rounding, through, clamp
        self.learns_points = False  # the gradient goes to the points and not to the parameter
        self.rng: torch.Generator | None = None  # of the stochastic rounding of this step

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantised value, of the same shape."""
        weight = weight.clamp(-1, 1) if self.clamp else weight
        unit, scale, shift = scaled(buckets(weight, self.bucket))
        points = self.points.to(weight.device).sort().values
        codes = self._codes(unit.detach(), points.detach())
        if self.learns_points:
            rows = scale.detach() * points[codes] + shift.detach()
        else:
            rounded = points.detach()[codes]
            straight = rounded + (unit - unit.detach())  # exactly the point, with the gradient of what was rounded
            rows = scale * (straight if self.through == "scales" else rounded) + shift
        value = rows.flatten()[: weight.numel()].reshape(weight.shape)
        if self.learns_points or self.through == "scales":
            return value
        return value.detach() + (weight - weight.detach())

    @torch.no_grad()
    def coded(self, weight: Tensor) -> Coded:
        """Return the value as codes, rounded to the nearest point."""
        weight = weight.clamp(-1, 1) if self.clamp else weight
        unit, scale, shift = scaled(buckets(weight, self.bucket))
        points = self.points.detach().to(weight.device).sort().values
        codes = nearest(unit, points).flatten()[: weight.numel()].to(torch.uint8)
        bucket = self.bucket if self.bucket is not None and self.bucket < weight.numel() else None
        return Coded(codes, scale[:, 0], shift[:, 0], points, bucket, tuple(weight.shape))

    def _codes(self, unit: Tensor, points: Tensor) -> Tensor:
        if self.rounding == "stochastic" and self.training and self.rng is not None:
            return drawn(unit, points, self.rng)
        return nearest(unit, points)


def attach(module: nn.Module, name: str, quantised: Quantised) -> None:
    """Let the parameter `name` of a module be quantised wherever it is read."""
    owner, _, parameter = name.rpartition(".")
    parametrize.register_parametrization(module.get_submodule(owner), parameter, quantised)


def attached(module: nn.Module) -> dict[str, Quantised]:
    """Return the quantised parameters of a module, by the names that they have without parametrisation."""
    found = {}
    for owner, layer in module.named_modules():
        if parametrize.is_parametrized(layer):
            for name, chain in layer.parametrizations.items():
                found[f"{owner}.{name}" if owner else name] = chain[0]
    return found


def detach(module: nn.Module) -> dict[str, Coded]:
    """Leave the quantised values in the parameters, exactly as their codes give them, and return the codes."""
    made = {}
    for name, quantised in attached(module).items():
        owner, _, parameter = name.rpartition(".")
        layer = module.get_submodule(owner)
        original = layer.parametrizations[parameter].original  # type: ignore[union-attr, index]
        made[name] = quantised.coded(original)
        parametrize.remove_parametrizations(layer, parameter, leave_parametrized=False)
        with torch.no_grad():
            getattr(layer, parameter).copy_(made[name].decode())
    return made

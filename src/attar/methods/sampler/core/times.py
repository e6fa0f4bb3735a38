"""Which times a step of training looks at: single ones, and neighbours on a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.diffusion.process import VE, Process, VPDiscrete, even_places
from attar.spec import spec


@spec
class Times:
    """How the time of a sample is drawn; on the discrete process it is rounded up to a level.

    Shares are t / t_max, and on EDM, where nearly all of that is noise, places on its grid (`Process.share`).
    """

    kind: Literal["uniform", "log-normal", "logit-normal"] = "uniform"  # of the share; of σ/α; logit of the share
    mean: float = 0.0  # of ln(σ/α), or of the logit of the share; EDM takes −1.2, sCM −1
    std: float = Field(1.0, gt=0)  # EDM takes 1.2, sCM 1.4
    shift: float = Field(1.0, gt=0)  # u → s u / (1 + (s − 1) u) of the share u behind the draw
    lowest: float = Field(1e-3, ge=0, lt=1)  # least share
    highest: float = Field(1.0, gt=0, le=1)  # largest share
    at_highest: float = Field(0.0, ge=0, le=1)  # probability of the largest time itself

    @model_validator(mode="after")
    def _ordered(self) -> Times:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest={self.lowest} is not below highest={self.highest}")
        return self

    def draw(self, n: int, process: Process, rng: torch.Generator) -> Tensor:
        """Return times `[n]` in float64 on the CPU."""
        if self.kind == "uniform":
            u = torch.rand(n, generator=rng, dtype=torch.float64) * (self.highest - self.lowest) + self.lowest
        else:
            normal = self.mean + self.std * torch.randn(n, generator=rng, dtype=torch.float64)
            u = torch.sigmoid(normal)
            if self.kind == "log-normal":
                u = process.share(process.time_of_log_snr(-normal))
        u = self.shift * u / (1 + (self.shift - 1) * u)
        certain = torch.rand(n, generator=rng, dtype=torch.float64) < self.at_highest
        u = torch.where(certain, torch.full_like(u, self.highest), u.clamp(self.lowest, self.highest))
        return on_levels(process, process.time_of_share(u))


def on_levels(process: Process, t: Tensor) -> Tensor:
    """Return the times, on the discrete process rounded up to its levels."""
    if not isinstance(process, VPDiscrete):
        return t
    return (t * process.steps - 1e-9).ceil().clamp_min(1) / process.steps


@dataclass(frozen=True)
class Pair:
    """Neighbouring times of `n` samples, all `[n]` in float64: t above s, and `end` ≤ s, where both sides are led."""

    t: Tensor
    s: Tensor
    end: Tensor
    jumps: bool = False  # whether they are led there by DDIM; otherwise `end` is the end of the grid, and f goes there


@spec
class Pairs:
    """Neighbours t > s on a grid of the process, the segment that holds them, and curricula of both."""

    intervals: int = Field(40, ge=1)  # of the grid, at the end of training
    first: int | None = Field(None, ge=1)  # of the grid at first; doubled step by step up to `intervals` (iCT)
    chosen: Literal["uniform", "log-normal"] = "uniform"  # of intervals; log-normal: by what σ/α of an interval holds
    mean: float = -1.1  # of ln(σ/α), where chosen so; iCT's
    std: float = Field(2.0, gt=0)
    skip: int = Field(1, ge=1)  # intervals between neighbours, at most as many as there are above the segment's edge
    segments: int = Field(1, ge=1)  # both sides are led to the lower edge of their segment
    random_end: bool = False  # … or to a grid time between that edge and s, drawn for each sample (CTM, Hyper-SD)
    ends_at: Literal["data", "first-level"] = "data"  # last grid time: clean data, or σ_min of VE and ᾱ_0 of VP

    @model_validator(mode="after")
    def _fits(self) -> Pairs:
        if self.segments > self.intervals:
            raise ValueError(f"{self.intervals} intervals cannot be cut into {self.segments} segments")
        return self

    def count(self, step: int, steps: int) -> int:
        """Return min(s0 · 2^⌊k/K'⌋, s1) intervals at step k, with K' = ⌊K / (log2⌊s1/s0⌋ + 1)⌋ (2310.14189)."""
        if self.first is None or self.first >= self.intervals:
            return self.intervals
        length = math.floor(steps / (math.log2(self.intervals // self.first) + 1))
        return min(self.first * 2 ** (step // max(1, length)), self.intervals)

    def grid(self, process: Process, intervals: int) -> Tensor:
        """Return rising times `[intervals + 1]` in float64."""
        first_level = self.ends_at == "first-level"
        if isinstance(process, VE):  # its own grid has σ_min before clean data
            times = process.grid(intervals + 1)[:-1] if first_level else process.grid(intervals)
            return times.flip(0)
        times = process.grid(intervals).flip(0)
        if not isinstance(process, VPDiscrete):
            return times
        levels = (times * process.steps).round()
        return (levels.clamp_min(1) if first_level else levels) / process.steps

    def draw(self, n: int, process: Process, rng: torch.Generator, *, step: int = 0, steps: int = 1) -> Pair:
        """Return neighbours for `n` samples."""
        intervals = self.count(step, steps)
        times = self.grid(process, intervals)
        place = torch.multinomial(self.chances(process, times), n, replacement=True, generator=rng)
        edges = even_places(intervals, min(self.segments, intervals))
        edge = edges[torch.searchsorted(edges, place, right=True) - 1]
        below = torch.maximum(place + 1 - self.skip, edge)
        if self.random_end:
            share = torch.rand(n, generator=rng, dtype=torch.float64)
            edge = edge + (share * (below - edge + 1)).floor().long()
        return Pair(times[place + 1], times[below], times[edge], self.segments > 1 or self.random_end)

    def chances(self, process: Process, times: Tensor) -> Tensor:
        """Return the probability of each interval `[intervals]`: even, or erf-differences of a log-normal σ/α.

        An interval without length, as on 1,000 levels of which the first stands twice, has none.
        """
        mass = torch.ones(len(times) - 1, dtype=torch.float64)
        if self.chosen == "log-normal":
            heights = (-process.log_snr(times) - self.mean) / (math.sqrt(2) * self.std)
            mass = (torch.erf(heights[1:]) - torch.erf(heights[:-1])).clamp_min(1e-12)
        mass = mass.masked_fill(times.diff() <= 0, 0.0)
        return mass / mass.sum()

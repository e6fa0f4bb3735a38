"""Derivatives of a network along a trajectory, for losses in continuous time: exact or by differences, made safe.

`function(x, t)` gives `[n, …]` for `x` `[n, …]` and times `[n]`; `slope` is dx/ds and `rate` dt/ds at each point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor

from attar.diffusion.process import spread
from attar.diffusion.pushforward import pushed
from attar.errors import RecipeError, did_you_mean

P = ParamSpec("P")
T = TypeVar("T")
Derivative = Literal["jvp", "central", "semi-continuous"]


def along(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    slope: Tensor,
    rate: Tensor,
    *,
    how: Derivative = "jvp",
    width: float = 1e-4,
    highest: float = torch.inf,
) -> tuple[Tensor, Tensor]:
    """Return (F, dF/ds) of F = function(x, t), s along the direction (`slope`, `rate`), both `[n, …]` without gradient.

    `jvp` is exact, one forward-mode pass. `central` is [F(x + h slope, t + h rate) − F(x − h slope, t − h rate)]
    / (2h), for networks that have no forward mode; it asks three times. `semi-continuous` is exact in x and takes
    ∂F/∂t ≈ (cos h · F(x, t) − F(x, t − h)) / sin h, which is steadier where the time embedding is steep (rCM,
    2510.08431). h is `width`; float32 needs about 1e-3 for `central`, whose steps end at time 0 and at `highest`. All
    calls have the same dropout masks.

    Raises:
        RecipeError: an unknown kind, or a width that is not positive.
    """
    if how not in get_args(Derivative):
        raise RecipeError(f"unknown derivative '{how}'{did_you_mean(how, get_args(Derivative))}")
    if width <= 0:
        raise RecipeError(f"the width of a difference is positive; got {width}")
    with torch.no_grad():
        if how != "jvp":
            function = repeatable(function)
        if how == "central":
            up, down = (_room(t, way * rate, width, highest) for way in (1, -1))
            ahead = function(x + spread(up, x) * slope, t + up * rate)
            behind = function(x - spread(down, x) * slope, t - down * rate)
            return function(x, t), (ahead - behind) / spread(up + down, x)
        moving = rate if how == "jvp" else torch.zeros_like(rate)
        output, derivative = pushed(function, (x, t), (slope, moving))
        if how == "semi-continuous":
            h = torch.tensor(width, dtype=t.dtype, device=t.device)
            by_time = (torch.cos(h) * output - function(x, t - h)) / torch.sin(h)
            derivative = derivative + spread(rate, x) * by_time
        return output, derivative


def repeatable(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function with torch's generators as they stand now, whenever it is called: the same dropout masks."""
    cpu, cuda = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def again(*given: P.args, **named: P.kwargs) -> T:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        return function(*given, **named)

    return again


def _room(t: Tensor, rate: Tensor, width: float, highest: float) -> Tensor:
    """Return `width`, or how far times `[n]` can go at a rate before they leave [0, highest], `[n]`."""
    edge = torch.where(rate > 0, highest, 0.0)
    far = torch.where(rate == 0, width, (edge - t) / rate)
    return far.clamp(0.0, width)


def scm_tangent(
    output: Tensor, derivative: Tensor, x: Tensor, t: Tensor, slope: Tensor, *, sigma_data: float, warmup: float = 1.0
) -> Tensor:
    """Return g = −cos² t (σ_d F − dx/dt) − r (cos t sin t · x + σ_d D) on TrigFlow (Lu and Song 2024, 2410.11081).

    It is cos t times the derivative of the consistency function cos t x − sin t σ_d F along the trajectory, for r = 1.
    `output` is F(x/σ_d, t), `slope` is dx/dt, and `derivative` is D = cos t sin t dF/dt, to be had as one product:
    `along(F, x/σ_d, t, cos t sin t · slope/σ_d, cos t sin t)`. r = `warmup` in [0, 1] rises over the first steps.
    """
    cos, sin = spread(torch.cos(t), x), spread(torch.sin(t), x)
    return -cos.square() * (sigma_data * output - slope) - warmup * (cos * sin * x + sigma_data * derivative)


def normalised_tangent(tangent: Tensor, constant: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return g / (‖g‖₂ + c) for each sample of `[n, …]`, and which samples `[n]` were finite; the others become 0.

    The length is over the whole sample, in float64. Record the mask: a run in which many samples are lost is broken.

    Raises:
        RecipeError: a constant that is not positive.
    """
    if constant <= 0:
        raise RecipeError(f"the constant beside the length of a tangent is positive; got {constant}")
    finite = tangent.flatten(1).isfinite().all(1)
    kept = torch.where(spread(finite, tangent), tangent, torch.zeros_like(tangent)).double()
    length = spread(kept.flatten(1).norm(dim=1), tangent)
    return (kept / (length + constant)).to(tangent.dtype), finite

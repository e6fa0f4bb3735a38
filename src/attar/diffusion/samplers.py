"""Whole trajectories: a solver over a grid of times, and the samplers of few-step students.

Times are falling, `[steps + 1]` for `integrate`, on the clock of the view's process (data at 0).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from attar.diffusion.process import Process, spread
from attar.diffusion.solvers import Draw, Past, Step, ddim, renoise
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError

ConsistencyFunction = Callable[[Tensor, Tensor, Condition], Tensor]  # f(x, t, condition) -> x0
Callback = Callable[[int, Tensor], None]  # number of the step, and the state after it


def _checked(times: Tensor, least: int) -> Tensor:
    if times.dim() != 1 or len(times) < least or not bool((times[1:] < times[:-1]).all()):
        raise RecipeError(
            f"a sampler goes through at least {least} falling times, from noise (large t) to data (t = 0); got "
            f"{[round(float(time), 4) for time in times.flatten()[:8]]}"
        )
    return times


def start(process: Process, t: Tensor, noise: Tensor) -> Tensor:
    """Return σ_t ε for unit noise `[n, …]`, the state from which samplers begin at time t."""
    return (spread(process.sigma(t.double()), noise) * noise).to(noise.dtype)


def integrate(
    view: View,
    x: Tensor,
    times: Tensor,
    condition: Condition = None,
    *,
    step: Step = ddim,
    draw: Draw | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Return x `[n, …]` carried from the first time to the last by a solver, one step a pair of times.

    Raises:
        RecipeError: times that do not fall, or what the solver refuses.
    """
    times = _checked(times, 2).to(x.device)
    past: Past = []
    for number, (t, s) in enumerate(itertools.pairwise(times)):
        x = step(view, x, t, s, condition, draw=draw, past=past)
        if callback is not None:
            callback(number, x)
    return x


def multistep_consistency(
    function: ConsistencyFunction,
    process: Process,
    x: Tensor,
    times: Tensor,
    condition: Condition = None,
    *,
    draw: Draw | None = None,
) -> Tensor:
    """Return the last clean sample of f at each of the falling `times` `[steps]`, noised anew in between.

    x0 = f(x, t_i), then x = α x0 + σ z at t_{i+1} (Song et al. 2023, 2303.01469, algorithm 1; LCM; sCM on TrigFlow).

    Raises:
        RecipeError: times that do not fall or are outside the process, or no `draw` where there are several.
    """
    times = process.inside(_checked(times, 1).to(x.device).double())
    clean = function(x, times[0], condition)
    for t in times[1:]:
        if draw is None:
            raise RecipeError(
                "a consistency sampler of several steps needs draw=drawing(generator) for its fresh noise"
            )
        clean = function(process.diffuse(clean, draw(clean), t).to(x.dtype), t, condition)
    return clean


def segmented(
    view: View,
    x: Tensor,
    times: Tensor,
    condition: Condition = None,
    *,
    gamma: float = 0.0,
    draw: Draw | None = None,
) -> Tensor:
    """Return x carried from time to time by jumps of a student consistent within segments, noised up again by γ.

    From t a DDIM jump to (1 − γ) s and fresh noise back up to s; γ = 0 is the plain jump to the edges of the segments,
    γ = 1 the consistency sampler (Zheng et al. 2024, TCD, arXiv 2402.19159; Hyper-SD).

    Raises:
        RecipeError: γ outside [0, 1], times that do not fall, or no `draw` where γ > 0.
    """
    if not 0.0 <= gamma <= 1.0:
        raise RecipeError(f"gamma is the share of each jump that is noised up again, between 0 and 1; got {gamma}")
    times = _checked(times, 2).to(x.device)
    for t, s in itertools.pairwise(times):
        low = (1.0 - gamma) * s
        x = ddim(view, x, t, low, condition)
        if gamma > 0.0 and bool(s > 0):
            if draw is None:
                raise RecipeError("gamma above 0 needs draw=drawing(generator) for its fresh noise")
            x = renoise(view.process, x, low, s, draw(x))
    return x


def overshooting(
    view: View, x: Tensor, times: Tensor, condition: Condition = None, *, draw: Draw | None = None
) -> Tensor:
    """Return x carried from time to time by DDIM steps of double length, each noised up again to the time between.

    From t_i to t_{i+2}, then up to t_{i+1}: (α_{i+1}/α_{i+2}) x + √(σ_{i+1}² − (α_{i+1}/α_{i+2})² σ_{i+2}²) z. The last
    step has no time beyond its own and is plain: N steps ask the network N times (Meng et al. 2023, arXiv 2210.03142).

    Raises:
        RecipeError: times that do not fall, or no `draw` where there are several steps.
    """
    times = _checked(times, 2).to(x.device)
    for t, s, beyond in zip(times[:-1], times[1:], torch.cat([times[2:], times[-1:]]), strict=True):
        x = ddim(view, x, t, beyond, condition)
        if bool(beyond < s):
            if draw is None:
                raise RecipeError("steps that overshoot need draw=drawing(generator) for their fresh noise")
            x = renoise(view.process, x, beyond, s, draw(x))
    return x


def lcm_boundary(step: Tensor, scaling: float = 10.0, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return (c_skip, c_out) of LCM for the steps k: f = c_skip x + c_out x0, with τ = `scaling` · k.

    c_skip = σ_d² / (τ² + σ_d²), c_out = τ / √(τ² + σ_d²): (1, 0) at k = 0 and nearly (0, 1) beyond (2310.04378).
    """
    tau = scaling * step.double()
    return sigma_data**2 / (tau.square() + sigma_data**2), tau / (tau.square() + sigma_data**2).sqrt()


def cm_boundary(sigma: Tensor, sigma_min: float = 0.002, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return (c_skip, c_out) of consistency models on VE: f = c_skip x + c_out F, exactly x at σ = σ_min.

    c_skip = σ_d² / ((σ − σ_min)² + σ_d²), c_out = σ_d (σ − σ_min) / √(σ² + σ_d²) (2303.01469, appendix C).
    """
    sigma = sigma.double()
    offset = sigma - sigma_min
    skip = sigma_data**2 / (offset.square() + sigma_data**2)
    return skip, sigma_data * offset / torch.sqrt(sigma.square() + sigma_data**2)

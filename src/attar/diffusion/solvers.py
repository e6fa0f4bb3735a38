"""One step of a sampler from time t to s: plain functions of one signature, and the loop that joins them.

Every step is `step(view, x, t, s, condition, draw=…, past=…) -> x_s`, with `x` `[n, …]`, times `[]` or `[n]` on the
clock of `view.process` (data at 0), s below t unless said otherwise. `draw(x)` gives unit normal noise like x, for
stochastic steps; `past` is a list in which a multistep solver keeps what it has seen. Coefficients are float64, results
have the dtype of x. A deterministic step is differentiable and may go to any s, so that `ddim` also is the jump to the
edge of a segment (`segment_edge`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from attar.diffusion.process import Process, spread
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError

Draw = Callable[[Tensor], Tensor]
Past = list[tuple[Tensor, Tensor]]  # (log-SNR, x0) of the points at which the network was asked, oldest first


class Step(Protocol):
    """One step of a sampler; see the module."""

    def __call__(
        self,
        view: View,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        condition: Condition = None,
        *,
        draw: Draw | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Return x_s `[n, …]`."""
        ...


def drawing(rng: torch.Generator) -> Draw:
    """Return a `draw` that takes its noise from a CPU generator, so that every device gets the same."""
    return lambda x: torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device)


def _levels(process: Process, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return process.levels(process.inside(t.double()), x)


def _noise(x: Tensor, draw: Draw | None) -> Tensor:
    if draw is None:
        raise RecipeError("a stochastic step needs draw=drawing(generator), the source of its noise")
    return draw(x)


def ddim(
    view: View,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Condition = None,
    *,
    draw: Draw | None = None,
    past: Past | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Return x_s = α_s x0 + √(σ_s² − σ̃²) ε + σ̃ z (Song et al. 2021, arXiv 2010.02502).

    σ̃ = η σ_s √(1 − q²) with q = σ_s α_t / (α_s σ_t), which is their σ̃ on VP and the ancestral noise on VE. η = 0 draws
    nothing; η = 1 keeps the marginals exactly (ancestral sampling, and the first-order step of the SDE).

    Raises:
        RecipeError: η outside [0, 1], no `draw` where η > 0, or a time outside the process.
    """
    if not 0.0 <= eta <= 1.0:
        raise RecipeError(f"eta is the share of fresh noise, between 0 (ODE) and 1 (ancestral); got {eta}")
    alpha, sigma = _levels(view.process, s, x)
    x0, eps = view.x0_eps(x, t, condition)
    if eta == 0.0:
        return (alpha * x0 + sigma * eps).to(x.dtype)
    fresh = eta * sigma * (1 - _ratio(view.process, t, s, x).square()).clamp_min(0.0).sqrt()
    kept = (sigma.square() - fresh.square()).clamp_min(0.0).sqrt()
    return (alpha * x0 + kept * eps + fresh * _noise(x, draw)).to(x.dtype)


def _ratio(process: Process, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
    """Return q = σ_s α_t / (α_s σ_t) = e^{−(λ_s − λ_t)}, in [0, 1] for s ≤ t."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(process, t, x), _levels(process, s, x)
    return sigma_s * alpha_t / (alpha_s * sigma_t)


def ancestral(
    view: View,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Condition = None,
    *,
    draw: Draw | None = None,
    past: Past | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Return the ancestral step, `ddim` with fresh noise: on VE, Euler to σ_dn and then σ_up z.

    σ_up = η σ_s √(1 − σ_s² / σ_t²), σ_dn = √(σ_s² − σ_up²).

    Raises:
        RecipeError: see `ddim`.
    """
    return ddim(view, x, t, s, condition, draw=draw, eta=eta)


def euler(
    view: View,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Condition = None,
    *,
    draw: Draw | None = None,
    past: Past | None = None,
) -> Tensor:
    """Return x + (s − t) dx/dt, Euler's step on the clock of the process (order 1)."""
    return (x + _span(view.process, t, s, x) * view.velocity(x, t, condition)).to(x.dtype)


def _span(process: Process, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
    return spread(process.inside(s.double()) - process.inside(t.double()), x)


def heun(
    view: View,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Condition = None,
    *,
    draw: Draw | None = None,
    past: Past | None = None,
) -> Tensor:
    """Return Heun's step, Euler's with the mean of the slopes at both ends (order 2; Karras et al. 2022, 2206.00364).

    A step onto clean data, s = 0, is Euler's: the slope there need not exist.
    """
    return runge_kutta2(view, x, t, s, condition, place=1.0)


def runge_kutta2(
    view: View,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Condition = None,
    *,
    draw: Draw | None = None,
    past: Past | None = None,
    place: float = 0.5,
) -> Tensor:
    """Return the two-stage step x + Δ (k1 + (k2 − k1) / (2 r)), k2 at t + r Δ (order 2): r = ½ midpoint, ⅔ Ralston.

    With r = 1 (Heun) a step onto s = 0 is Euler's.

    Raises:
        RecipeError: r = `place` outside (0, 1].
    """
    if not 0.0 < place <= 1.0:
        raise RecipeError(f"place is where the second slope is taken, in (0, 1]; got {place}")
    span = _span(view.process, t, s, x)
    first = view.velocity(x, t, condition)
    onto_data = s == 0
    if place < 1.0 or not bool(onto_data.any()):
        second = view.velocity((x + place * span * first).to(x.dtype), t + place * (s - t), condition)
        return (x + span * (first + (second - first) / (2 * place))).to(x.dtype)
    if bool(onto_data.all()):
        return (x + span * first).to(x.dtype)
    arrived = spread(onto_data, x)  # some samples alone: their second slope is asked where it exists, and not used
    second = view.velocity(
        torch.where(arrived, x, x + span * first).to(x.dtype), torch.where(onto_data, t, s), condition
    )
    return (x + span * torch.where(arrived, first, (first + second) / 2)).to(x.dtype)


def dpmpp_1(
    view: View,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Condition = None,
    *,
    draw: Draw | None = None,
    past: Past | None = None,
) -> Tensor:
    """Return DPM-Solver++'s first-order step, x_s = (σ_s/σ_t) x − α_s (e^{−h} − 1) x0; equal to `ddim` (2211.01095)."""
    return _exponential(view.process, x, view.x0(x, t, condition), t, s)


def dpmpp_2m(
    view: View,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Condition = None,
    *,
    draw: Draw | None = None,
    past: Past | None = None,
    stochastic: bool = False,
) -> Tensor:
    """Return DPM-Solver++'s two-step step: x0 is replaced by (1 + 1/(2r)) x0 − 1/(2r) x0_before, r = h_before / h.

    The first step, and one from pure noise or onto clean data (h = ∞), are first order. `stochastic` solves the SDE:
    x_s = (σ_s/σ_t) e^{−h} x + α_s (1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) z. Lu et al. 2022, 2211.01095.

    Raises:
        RecipeError: no `past` list (give one new list a trajectory), or no `draw` where stochastic.
    """
    if past is None:
        raise RecipeError("dpmpp_2m remembers the step before: give past=[] anew for each trajectory, or use sample()")
    process = view.process
    x0 = view.x0(x, t, condition)
    here = process.log_snr(process.inside(t.double()))
    slope = x0
    if past:
        before, x0_before = past[-1]
        weight = (process.log_snr(process.inside(s.double())) - here) / (2 * (here - before))
        weight = spread(torch.where(weight.isfinite(), weight, torch.zeros_like(weight)), x)
        slope = x0 + weight * (x0 - x0_before)
    past[:] = [(here, x0)]
    if not stochastic:
        return _exponential(process, x, slope, t, s)
    (_, sigma_t), (alpha_s, sigma_s) = _levels(process, t, x), _levels(process, s, x)
    ratio = _ratio(process, t, s, x)
    fresh = (1 - ratio.square()).clamp_min(0.0)
    mean = sigma_s / sigma_t * ratio * x + alpha_s * fresh * slope
    return (mean + sigma_s * fresh.sqrt() * _noise(x, draw)).to(x.dtype)


def _exponential(process: Process, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    (_, sigma_t), (alpha_s, sigma_s) = _levels(process, t, x), _levels(process, s, x)
    return (sigma_s / sigma_t * x + alpha_s * (1 - _ratio(process, t, s, x)) * x0).to(x.dtype)


def x0_of_jump(process: Process, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the x0 with which one DDIM step leads from x_t to x_s, the target of progressive distillation.

    (x_s − (σ_s/σ_t) x_t) / (α_s − (σ_s/σ_t) α_t), with s < t (Salimans and Ho 2022, arXiv 2202.00512).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(process, t, x_t), _levels(process, s, x_t)
    return ((x_s - sigma_s / sigma_t * x_t) / (alpha_s - sigma_s / sigma_t * alpha_t)).to(x_t.dtype)


def eps_of_jump(process: Process, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the ε with which one DDIM step leads from x_t up to x_s, s > t, from clean data too.

    (x_s − (α_s/α_t) x_t) / (σ_s − (α_s/α_t) σ_t), the other half of `x0_of_jump`, which is undetermined at t = 0.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(process, t, x_t), _levels(process, s, x_t)
    return ((x_s - alpha_s / alpha_t * x_t) / (sigma_s - alpha_s / alpha_t * sigma_t)).to(x_t.dtype)


def renoise(process: Process, x: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return a sample of x_t given x_s for t ≥ s: (α_t/α_s) x + √(σ_t² − (α_t/α_s)² σ_s²) z."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(process, t, x), _levels(process, s, x)
    gain = alpha_t / alpha_s
    return (gain * x + (sigma_t.square() - (gain * sigma_s).square()).clamp_min(0.0).sqrt() * noise).to(x.dtype)


def segment_edge(t: Tensor, edges: Tensor) -> Tensor:
    """Return the lower edge of the segment (edge_i, edge_{i+1}] that holds each time; `edges` `[m + 1]` rise.

    Raises:
        RecipeError: edges that do not rise, or a time outside them.
    """
    if edges.dim() != 1 or len(edges) < 2 or not bool((edges[1:] > edges[:-1]).all()):
        raise RecipeError("the edges of segments are at least two rising times, the first of them 0")
    place = torch.searchsorted(edges, t.contiguous(), right=False)
    if bool(((place < 1) | (place >= len(edges))).any()):
        raise RecipeError(f"a time lies outside the segments, which run from above {edges[0]:g} to {edges[-1]:g}")
    return edges[place - 1]

"""The signal of a trajectory, y_t = (x_t − σ_t ε) / α_t with the noise ε that it began with; at last a clean sample."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from attar.diffusion.denoiser import Denoiser
from attar.diffusion.prediction import convert
from attar.diffusion.process import VE, Process, VPDiscrete
from attar.diffusion.samplers import start
from attar.diffusion.solvers import Draw, Past, Step
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError


def last_time(process: Process) -> float:
    """Return the time at which a signal is a clean sample: 0, or the first level of the discrete process."""
    return 1 / process.steps if isinstance(process, VPDiscrete) else 0.0


def signal(view: Denoiser, noise: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
    """Return g(ε, t) `[n, …]`, the signal at times `[n]` as a network tells it that sees unit noise `[n, …]` alone.

    The network is told t and shown σ ε of the noisiest time, and its output is read as x0 of that; that of a network
    which predicts ε is read as ε − y, since x0 would be its error divided by almost no α.

    Raises:
        RecipeError: EDM's process, whose networks scale what they see by t.
    """
    process = view.process
    if isinstance(process, VE):
        raise RecipeError(
            "a network that is shown pure noise and told another time has to see it alike at all times, and EDM's "
            "scales it by the time; take process=flow, cosine or vp"
        )
    noisiest = torch.full((len(noise),), process.t_max, dtype=torch.float64, device=noise.device)
    shown = start(process, noisiest[0], noise)
    output = view.output(shown, t, condition)
    if view.prediction == "eps":
        return noise - output
    return convert(output, shown, noisiest, process, source=view.prediction, target="x0")


def signal_below(
    view: View,
    y_t: Tensor,
    noise: Tensor,
    times: Tensor,
    condition: Condition = None,
    *,
    step: Step,
    draw: Draw | None = None,
) -> Tensor:
    """Return y_s `[n, …]`: the signal y_t carried through falling times `[points, n]` by a solver of x.

    One DDIM step is y_s = (1 − ρ) x̂0(x_t, t) + ρ y_t with ρ = σ_s α_t / (α_s σ_t) and x_t = α_t y_t + σ_t ε.
    """
    process = view.process
    x, past = process.diffuse(y_t, noise, times[0]).to(y_t.dtype), Past()
    for t, s in itertools.pairwise(times):
        x = step(view, x, t, s, condition, draw=draw, past=past)
    alpha, sigma = process.levels(times[-1], x)
    return ((x - sigma * noise) / alpha).to(y_t.dtype)


def share_kept(process: Process, t: Tensor, s: Tensor) -> Tensor:
    """Return ρ = σ_s α_t / (α_s σ_t) `[n]`, the share of the signal that a DDIM step from t to s keeps."""
    t, s = t.double(), s.double()
    return process.sigma(s) * process.alpha(t) / (process.alpha(s) * process.sigma(t))

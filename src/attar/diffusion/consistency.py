"""Students that jump: consistency functions f(x, t) → x0, and flow maps (x, t, r) → x_r, as views and functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from attar.diffusion.denoiser import Denoiser
from attar.diffusion.process import VE, Process, VPDiscrete, spread
from attar.diffusion.samplers import cm_boundary, lcm_boundary
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError, did_you_mean

Boundary = Literal["x0", "cm", "lcm"]
MeanVelocity = Callable[[Tensor, Tensor, Tensor, Condition], Tensor]  # u(x, t, r, condition) [n, …]


@dataclass(frozen=True, eq=False)
class Consistent(View):
    """A network's consistency function as a view: its `x0` is f(x, t), so that `ddim` on it is a jump to any time.

    | boundary | f                             | equals x at                                           |
    |----------|-------------------------------|-------------------------------------------------------|
    | `x0`     | x0 as the network predicts it | t = 0, for every prediction but `x0` itself           |
    | `lcm`    | c_skip x + c_out x0           | step k = 0 of VPDiscrete (2310.04378)                 |
    | `cm`     | c_skip x + c_out F            | σ_min of VE, for the prediction `edm` (2303.01469)    |

    Raises:
        RecipeError: a boundary on another process or prediction than its own.
    """

    view: View
    boundary: Boundary = "x0"
    scaling: float = 10.0  # of LCM's τ = scaling · k

    def __post_init__(self) -> None:
        if self.boundary not in get_args(Boundary):
            raise RecipeError(f"unknown boundary '{self.boundary}'{did_you_mean(self.boundary, get_args(Boundary))}")
        prediction = self.view.prediction if isinstance(self.view, Denoiser) else None
        if self.boundary == "lcm" and not isinstance(self.view.process, VPDiscrete):
            raise RecipeError(
                "the boundary 'lcm' counts steps, so it is for the discrete process (process=vp); use 'x0'"
            )
        if self.boundary == "cm" and not (isinstance(self.view.process, VE) and prediction == "edm"):
            raise RecipeError("the boundary 'cm' is for networks that predict 'edm' on process=edm; use 'x0'")
        if self.boundary == "x0" and prediction == "x0":
            raise RecipeError(
                "a consistency function is x itself at t = 0, and nothing holds a network that predicts 'x0' to that: "
                "take the prediction velocity, v, edm, trig or eps, or the boundary 'lcm'"
            )

    @property
    def process(self) -> Process:  # type: ignore[override]
        """Return the process of the network."""
        return self.view.process

    def x0(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Return f(x, t) `[n, …]`."""
        if self.boundary == "x0":
            return self.view.x0(x, t, condition)
        process = self.process
        exact = process.inside(t.double())
        if self.boundary == "lcm":
            skip, out = lcm_boundary(process.label(exact), self.scaling)
            return (spread(skip, x) * x + spread(out, x) * self.view.x0(x, t, condition)).to(x.dtype)
        assert isinstance(process, VE)  # as checked when it was made
        assert isinstance(self.view, Denoiser)
        skip, out = cm_boundary(exact, process.sigma_min, process.sigma_data)
        return (spread(skip, x) * x + spread(out, x) * self.view.output(x, t, condition)).to(x.dtype)

    def x0_eps(self, x: Tensor, t: Tensor, condition: Condition = None) -> tuple[Tensor, Tensor]:
        """Return f(x, t) and the noise (x − α f) / σ that x holds beside it, both `[n, …]`; at t = 0 x and 0."""
        if self.boundary == "x0":
            return self.view.x0_eps(x, t, condition)
        f = self.x0(x, t, condition)
        exact = self.process.inside(t.double())
        alpha, sigma = self.process.levels(exact, x)
        eps = torch.where(sigma > 0, (x - alpha * f) / sigma.clamp_min(1e-12), torch.zeros_like(x))
        return f, eps.to(x.dtype)


def flow_map(function: MeanVelocity, x: Tensor, t: Tensor, r: Tensor, condition: Condition = None) -> Tensor:
    """Return x_r = x − (t − r) u(x, t, r), where u is the mean velocity between r and t (MeanFlow, 2505.13447)."""
    span = spread((t - r).to(torch.float64), x)
    return (x - span * function(x, t, r, condition)).to(x.dtype)

"""How a sampler draws: a solver over a grid, a consistency function, jumps within segments, a flow map, a signal."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.diffusion.consistency import Boundary, Consistent, MeanVelocity, flow_map
from attar.diffusion.denoiser import Denoiser
from attar.diffusion.process import Process, even_places
from attar.diffusion.samplers import integrate, multistep_consistency, overshooting, segmented, start
from attar.diffusion.signal import last_time, signal
from attar.diffusion.solvers import Draw, Step, ancestral, ddim, dpmpp_2m, euler, heun, runge_kutta2
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError
from attar.spec import kinds, spec

Solver = Literal["ddim", "ancestral", "euler", "heun", "midpoint", "dpmpp-2m", "dpmpp-2m-sde"]
SOLVERS: dict[str, Step] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "euler": euler,
    "heun": heun,
    "midpoint": runge_kutta2,
    "dpmpp-2m": dpmpp_2m,
    "dpmpp-2m-sde": functools.partial(dpmpp_2m, stochastic=True),
}


def grid_of(process: Process, steps: int, highest: float | None = None, learned: int | None = None) -> Tensor:
    """Return `steps` + 1 falling times to 0 of the process's own grid, stretched to begin at `highest` (none: t_max).

    With `learned`, the number of intervals of the grid that a student was trained on, they are chosen among its times,
    evenly; where more steps are asked for, they are not.

    Raises:
        RecipeError: a highest time outside the process, or no step.
    """
    if highest is not None and not 0 < highest <= process.t_max:
        raise RecipeError(f"sampling begins at a time in (0, {process.t_max:g}]; got {highest:g}")
    times = process.grid(steps)
    if learned is not None and steps <= learned:
        times = process.grid(learned).flip(0)[even_places(learned, steps)].flip(0)
    return times * (1.0 if highest is None else highest / process.t_max)


@spec
class Ode:
    """Integrate the probability-flow ODE (or an SDE) from noise to data with a solver."""

    kind: Literal["ode"] = "ode"
    solver: Solver = "ddim"
    steps: int = Field(32, ge=1)  # intervals; heun and midpoint ask the network twice in each
    highest: float | None = Field(None, gt=0)  # time to begin at; none: the noisiest

    def grid(self, process: Process, steps: int) -> Tensor:
        """Return the falling times to 0 `[steps + 1]` that samples go through."""
        return grid_of(process, steps, self.highest)

    def draw(self, view: View, noise: Tensor, condition: Condition, steps: int, draw: Draw, **_: Any) -> Tensor:
        """Return samples like the unit noise `[n, …]`."""
        times = self.grid(view.process, steps)
        x = start(view.process, times[0], noise)
        return integrate(view, x, times, condition, step=SOLVERS[self.solver], draw=draw)


@spec
class Multistep:
    """Ask a consistency function for the clean sample, noise it anew to the next time, and so on."""

    kind: Literal["consistency"] = "consistency"
    steps: int = Field(1, ge=1)
    boundary: Boundary = "x0"  # how f is made of the network's output
    scaling: float = Field(10.0, gt=0)  # of the boundary lcm
    highest: float | None = Field(None, gt=0)  # time to begin at; none: the noisiest
    times: tuple[float, ...] = ()  # falling times after the first, for 2, 3 … steps; none: the process's own grid
    learned: int | None = Field(None, ge=1)  # intervals of the grid of training, whose times are kept to; none: any

    def grid(self, process: Process, steps: int) -> Tensor:
        """Return the falling times to 0 `[steps + 1]` that samples go through."""
        times = grid_of(process, steps, self.highest, self.learned)
        if self.times and steps <= len(self.times) + 1:
            between = torch.tensor(self.times[: steps - 1], dtype=torch.float64)
            times = torch.cat([times[:1], between, times[-1:]])
        return times

    def draw(self, view: View, noise: Tensor, condition: Condition, steps: int, draw: Draw, **_: Any) -> Tensor:
        """Return samples like the unit noise `[n, …]`."""
        times = self.grid(view.process, steps)[:-1]
        function = Consistent(view, self.boundary, self.scaling).x0
        x = start(view.process, times[0], noise)
        return multistep_consistency(function, view.process, x, times, condition, draw=draw)


@spec
class Segmented:
    """Jump from edge to edge of segments within which the student is consistent, and noise a share γ up again."""

    kind: Literal["segmented"] = "segmented"
    steps: int = Field(4, ge=1)
    gamma: float = Field(0.0, ge=0, le=1)  # 0: plain jumps; 1: as the consistency sampler
    boundary: Boundary = "x0"  # how f is made of the network's output
    scaling: float = Field(10.0, gt=0)  # of the boundary lcm
    highest: float | None = Field(None, gt=0)  # time that the first step is told, of the noisiest noise all the same
    learned: int | None = Field(None, ge=1)  # intervals of the grid of training, whose times are kept to; none: any

    def grid(self, process: Process, steps: int) -> Tensor:
        """Return the falling times to 0 `[steps + 1]` that samples go through."""
        return grid_of(process, steps, self.highest, self.learned)

    def draw(self, view: View, noise: Tensor, condition: Condition, steps: int, draw: Draw, **_: Any) -> Tensor:
        """Return samples like the unit noise `[n, …]`."""
        times = self.grid(view.process, steps)
        x = start(view.process, grid_of(view.process, 1)[0], noise)
        return segmented(
            Consistent(view, self.boundary, self.scaling), x, times, condition, gamma=self.gamma, draw=draw
        )


@spec
class Overshoot:
    """Go twice as far as each DDIM step of a grid, and noise half of the way up again."""

    kind: Literal["overshoot"] = "overshoot"
    steps: int = Field(4, ge=1)
    highest: float | None = Field(None, gt=0)  # time to begin at; none: the noisiest

    def draw(self, view: View, noise: Tensor, condition: Condition, steps: int, draw: Draw, **_: Any) -> Tensor:
        """Return samples like the unit noise `[n, …]`."""
        times = grid_of(view.process, steps, self.highest)
        return overshooting(view, start(view.process, times[0], noise), times, condition, draw=draw)


@spec
class Encode:
    """Carry samples up to the noise from which DDIM makes them: they are given in the place of noise."""

    kind: Literal["encode"] = "encode"
    steps: int = Field(4, ge=1)

    def draw(self, view: View, noise: Tensor, condition: Condition, steps: int, draw: Draw, **_: Any) -> Tensor:
        """Return the unit noise of samples `[n, …]`."""
        times = grid_of(view.process, steps).flip(0).to(noise.device)
        x = noise
        for t, s in itertools.pairwise(times):
            x = ddim(view, x, t, s, condition)
        return (x / view.process.sigma(times[-1])).to(x.dtype)


@spec
class FlowMap:
    """Jump from time to time by the mean velocity between them, x_r = x − (t − r) u(x, t, r)."""

    kind: Literal["flow-map"] = "flow-map"
    steps: int = Field(1, ge=1)
    highest: float | None = Field(None, gt=0)  # time to begin at; none: the noisiest

    def draw(
        self,
        view: View,
        noise: Tensor,
        condition: Condition,
        steps: int,
        draw: Draw,
        *,
        mean_velocity: MeanVelocity,
        **_: Any,
    ) -> Tensor:
        """Return samples like the unit noise `[n, …]`.

        Raises:
            RecipeError: guidance by two calls.
        """
        _unguided(view)
        times = grid_of(view.process, steps, self.highest).to(noise.device)
        x = start(view.process, times[0], noise)
        for t, r in itertools.pairwise(times):
            x = flow_map(mean_velocity, x, t, r, condition)
        return x


def _unguided(view: View) -> Denoiser:
    if not isinstance(view, Denoiser):
        raise RecipeError("this sampler takes no guidance beside what it was distilled with; leave it out")
    return view


@spec
class Signal:
    """Ask a network that is shown pure noise for the signal at the clean end: one evaluation, whatever is asked."""

    kind: Literal["signal"] = "signal"
    steps: int = Field(1, ge=1, le=1)

    def draw(self, view: View, noise: Tensor, condition: Condition, steps: int, draw: Draw, **_: Any) -> Tensor:
        """Return samples like the unit noise `[n, …]`.

        Raises:
            RecipeError: guidance by two calls, or several steps.
        """
        if steps != 1:
            raise RecipeError(f"this sampler knows one step alone; got steps={steps}")
        view = _unguided(view)
        clean = torch.full((len(noise),), last_time(view.process), dtype=torch.float64, device=noise.device)
        return signal(view, noise, clean, condition)


if TYPE_CHECKING:
    Drawing = Ode | Multistep | Segmented | Overshoot | Encode | FlowMap | Signal
else:
    Drawing = kinds(Ode | Multistep | Segmented | Overshoot | Encode | FlowMap | Signal)

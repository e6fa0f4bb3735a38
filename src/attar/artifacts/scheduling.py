"""How a pipeline of diffusers draws as a sampler does: by which scheduler, and what its call is told."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from attar.artifacts.drawing import Multistep, Ode, Segmented
from attar.artifacts.sampler import Reading
from attar.diffusion.process import Flow, Process, TrigFlow, VPDiscrete
from attar.diffusion.schedulers import Way, scheduler_times, to_scheduler
from attar.errors import RecipeError

UNSCALED = 0.02  # how far from 1 the first noise may be, which pipelines begin with at 1
SAID = ("timestep_spacing", "set_alpha_to_one", "clip_sample", "original_inference_steps", "timestep_scaling", "shift")
TIMES = frozenset({"timesteps", "sigmas"})  # by which pipelines are told their times
ALL = TIMES | {"eta"}


def scheduling(reading: Reading, takes: Collection[str] = ALL) -> tuple[Any, dict[str, Any]]:
    """Return the scheduler of diffusers that draws as `reading` says, and the values that its pipeline is called with.

    Args:
        reading: of a sampler.
        takes: names that the call of the pipeline takes.

    Raises:
        RecipeError: no scheduler of diffusers draws so, or the pipeline cannot be told the times.
    """
    process = reading.process.build()
    way, options = _way(reading, process)
    if missing := options.keys() - takes:
        raise RecipeError(
            f"the call of this pipeline takes no '{missing.pop()}', by which it would draw as this sampler"
        )
    drawing: Any = reading.drawing
    scheduler = to_scheduler(process, reading.prediction, way, scaling=_scaling(drawing))
    times = drawing.grid(process, drawing.steps)
    first = float(process.sigma(times[0]))
    if isinstance(process, VPDiscrete | Flow) and not isinstance(drawing, Segmented) and abs(first - 1) > UNSCALED:
        raise RecipeError(
            f"this sampler begins with noise of {first:.3g}, and pipelines begin with 1; distil it with highest=null"
        )
    guidance = reading.guidance if reading.guided == "two-calls" else 1.0  # what is inside is not asked for again
    return scheduler, {**_times(scheduler, process, times, takes), **options, "guidance_scale": guidance}


def called(call: dict[str, Any], takes: Collection[str] = ("prompt",)) -> str:
    """Return the line of Python that draws from a pipeline `pipe`."""
    first = "prompt" if "prompt" in takes else "class_labels" if "class_labels" in takes else ""
    return f"pipe({', '.join([*([first] if first else []), *(f'{name}={value}' for name, value in call.items())])})"


def rescheduled(scheduler: Any) -> str:
    """Return the line of Python that gives a pipeline `pipe` a scheduler in the place of its own."""
    said = [f"{key}={scheduler.config[key]!r}" for key in SAID if key in scheduler.config]
    made = f"diffusers.{type(scheduler).__name__}.from_config"
    return f"pipe.scheduler = {made}({', '.join(['pipe.scheduler.config', *said])})"


def _way(reading: Reading, process: Process) -> tuple[Way, dict[str, Any]]:
    """Return the kind of scheduler that draws as `reading` says, and what it is told beside times.

    Raises:
        RecipeError: there is none.
    """
    drawing = reading.drawing
    linear = not isinstance(process, VPDiscrete)  # where DDIM and Euler are one
    if isinstance(drawing, Ode) and not isinstance(process, TrigFlow):
        if drawing.solver == "ddim" or (linear and drawing.solver == "euler"):
            return "ode", {}
        if drawing.solver == "ancestral" and not linear:
            return "ode", {"eta": 1.0}
    if isinstance(drawing, Segmented) and drawing.gamma == 0:
        times, even = drawing.grid(process, drawing.steps), process.grid(drawing.steps)
        if linear or torch.allclose(times, even, rtol=0, atol=1e-3):  # DDIM of diffusers knows no other times
            return "ode", {}
    if isinstance(drawing, Multistep) or (
        isinstance(drawing, Segmented) and (drawing.gamma == 1 or drawing.steps == 1)
    ):
        return "consistency", {}
    if isinstance(drawing, Segmented) and not linear:
        return "segmented", {"eta": drawing.gamma}
    how = f"{drawing.kind} ({drawing.solver})" if isinstance(drawing, Ode) else drawing.kind
    raise RecipeError(
        f"no scheduler of diffusers draws as this sampler does: '{how}' on {type(process).__name__}; draw from it here "
        "(attar sample), or distil a student of consistency, lcm, dmd or progressive"
    )


def _scaling(drawing: Any) -> float:
    """Return the scaling of LCM's boundary, so large where f is the prediction itself that nothing of x is left."""
    return float(drawing.scaling) if getattr(drawing, "boundary", "x0") == "lcm" else 1e4


def _times(scheduler: Any, process: Process, times: Tensor, takes: Collection[str]) -> dict[str, Any]:
    """Return what a pipeline is called with so that its scheduler goes through `times`.

    Raises:
        RecipeError: it cannot be told them.
    """
    steps, near = len(times) - 1, 1.001 / process.steps if isinstance(process, VPDiscrete) else 1e-3
    scheduler.set_timesteps(steps)
    if torch.allclose(scheduler_times(scheduler, process).cpu(), times, rtol=0, atol=near * process.t_max):
        return {"num_inference_steps": steps}
    known = TIMES.intersection(takes, inspect.signature(scheduler.set_timesteps).parameters)
    if isinstance(process, VPDiscrete) and "timesteps" in known:
        return {"timesteps": process.label(times[:-1]).round().long().tolist()}
    if isinstance(process, Flow) and "sigmas" in known:  # which the scheduler shifts
        plain = times[:-1] / (process.shift + (1 - process.shift) * times[:-1])
        return {"sigmas": [round(time, 6) for time in plain.tolist()]}
    raise RecipeError(
        f"this sampler goes through the times {[round(time, 4) for time in times.tolist()]}, which the pipeline cannot "
        f"be told by {type(scheduler).__name__}; draw from it here (attar sample)"
    )

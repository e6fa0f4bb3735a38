"""What a scheduler of the diffusers library says: the process, the prediction and the times, and back."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from attar.diffusion.prediction import Prediction, check_prediction
from attar.diffusion.process import VE, Flow, Process, TrigFlow, VPDiscrete
from attar.errors import RecipeError

Way = Literal["ode", "consistency", "segmented"]  # how samples are drawn
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
    "trigflow": "trig",
}


def from_scheduler(scheduler: Any, prediction: Prediction | None = None) -> tuple[Process, Prediction]:
    """Return the process of a diffusers scheduler, and what its network predicts.

    DDPM, DDIM, DPM-Solver, Euler, LCM, TCD and their kin are VPDiscrete on the unscaled x (their VE coordinates are
    x / α); FlowMatch… is Flow (labels are 1000 t: `time_scale=1000`), EDM… is VE, SCM is TrigFlow. `prediction` is what
    the caller believes; it is compared.

    Raises:
        RecipeError: a scheduler whose process is unknown, or that says another prediction than the caller.
    """
    config, name = scheduler.config, type(scheduler).__name__
    process: Process
    said = config.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas", False):
        shift = config.get("shift", None) or config.get("flow_shift", None) or 1.0
        process, kind = Flow(shift=float(shift)), PREDICTIONS["flow_prediction"]
    elif name.startswith("EDM") and said == "epsilon":
        levels = {key: float(config[key]) for key in ("sigma_min", "rho", "sigma_data")}
        process, kind = VE(t_max=float(config["sigma_max"]), **levels), "edm"
    elif name.startswith("SCM"):
        process, kind = TrigFlow(sigma_data=float(config.get("sigma_data", 0.5))), "trig"
    elif hasattr(scheduler, "alphas_cumprod") and said in PREDICTIONS:
        process, kind = VPDiscrete(scheduler.alphas_cumprod), PREDICTIONS[said]
    else:
        raise RecipeError(
            f"the noise process of {name} (prediction_type '{said}') is unknown. Known are schedulers with "
            "alphas_cumprod (DDIM, DPM-Solver, Euler, LCM, TCD …), FlowMatch…, EDM… and SCM; for another one build the "
            "Process yourself and give it to Denoiser"
        )
    if prediction is not None and prediction != kind:
        raise RecipeError(
            f"{name} says that its network predicts '{kind}', and '{prediction}' was asked for: a network read as "
            "another prediction draws wrong images without any error"
        )
    check_prediction(kind, process)
    return process, kind


def scheduler_times(scheduler: Any, process: Process) -> Tensor:
    """Return the falling times in float64 that the scheduler goes through since its `set_timesteps`, the end included.

    Where K is no multiple of the steps, DDIM of diffusers jumps by K // steps and so not quite onto its own next time;
    these times do.

    Raises:
        RecipeError: `set_timesteps` was not called.
    """
    if scheduler.num_inference_steps is None:
        raise RecipeError(f"{type(scheduler).__name__} has no times yet: call set_timesteps(steps) on it first")
    if isinstance(process, VPDiscrete):
        times = process.time_of_step(scheduler.timesteps)
        if type(scheduler).__name__.startswith("TCD"):
            clean = False  # its last jump goes to step 0, whatever set_alpha_to_one says
        elif (last := getattr(scheduler, "final_alpha_cumprod", None)) is not None:
            clean = float(last) == 1.0
        else:
            clean = scheduler.config.get("final_sigmas_type", "zero") == "zero"
        return torch.cat([times, (0.0 if clean else 1.0 / process.steps) * torch.ones_like(times[:1])])
    if isinstance(process, TrigFlow):
        return torch.as_tensor(scheduler.timesteps).double()
    return torch.as_tensor(scheduler.sigmas).double()


def to_scheduler(process: Process, prediction: Prediction, way: Way = "ode", *, scaling: float = 10.0) -> Any:
    """Return a diffusers scheduler of the process; on VPDiscrete its default steps begin at the noisiest level.

    | way           | VPDiscrete | Flow           | VE       | TrigFlow |
    |---------------|------------|----------------|----------|----------|
    | `ode`         | DDIM       | FlowMatchEuler | EDMEuler | SCM      |
    | `consistency` | LCM        | FlowMatchLCM   |          | SCM      |
    | `segmented`   | TCD        |                |          |          |

    SCM noises anew, whatever is asked; `scaling` is that of LCM's boundary, and TCD ends at step 0, not on clean data.

    Raises:
        RecipeError: a process or a prediction that diffusers has no scheduler for; transfer the denoiser first.
    """
    import diffusers

    check_prediction(prediction, process)
    names = {kind: name for name, kind in PREDICTIONS.items()}
    name, options = "", dict[str, Any]()
    if isinstance(process, VPDiscrete) and prediction in ("eps", "x0", "v"):
        products = process.alphas_cumprod.double()
        betas = 1 - products / torch.cat([torch.ones_like(products[:1]), products[:-1]])
        options = {"num_train_timesteps": process.steps, "trained_betas": betas.tolist(), "clip_sample": False}
        options |= {"prediction_type": names[prediction], "timestep_spacing": "trailing", "set_alpha_to_one": True}
        name = {"ode": "DDIMScheduler", "consistency": "LCMScheduler", "segmented": "TCDScheduler"}[way]
        if way != "ode":
            options |= {"original_inference_steps": process.steps, "timestep_scaling": scaling}
    elif isinstance(process, Flow) and prediction == "velocity" and way != "segmented":
        name = "FlowMatchEulerDiscreteScheduler" if way == "ode" else "FlowMatchLCMScheduler"
        options = {"shift": process.shift}
    elif isinstance(process, VE) and prediction == "edm" and way == "ode":
        name, options = "EDMEulerScheduler", {"sigma_min": process.sigma_min, "sigma_max": process.t_max}
        options |= {"sigma_data": process.sigma_data, "rho": process.rho}
    elif isinstance(process, TrigFlow) and prediction == "trig" and way != "segmented":
        name, options = "SCMScheduler", {"sigma_data": process.sigma_data}
    if not name:
        raise RecipeError(
            f"diffusers has no scheduler for '{prediction}' on {type(process).__name__} that draws as '{way}' does; it "
            "has them for eps, x0 and v on VPDiscrete, velocity on Flow, edm on VE and trig on TrigFlow"
        )
    if not hasattr(diffusers, name):
        raise RecipeError(f"diffusers {diffusers.__version__} has no {name}: pip install --upgrade diffusers")
    return getattr(diffusers, name)(**options)

"""The diffusion core: processes, predictions, denoisers, guidance, solvers and samplers, pure and exact in float64.

One clock everywhere: data at t = 0, more noise at larger t (`process`). Guidance states its convention (`guidance`).
"""

from attar.diffusion.denoiser import Denoiser, check_reading, diffusers_network, readings
from attar.diffusion.guidance import GuidanceEmbedding, Guided, guidance_weight, guide
from attar.diffusion.mixture import ExactView, Mixture
from attar.diffusion.prediction import Prediction, check_prediction, coefficients, convert, to_x0_eps
from attar.diffusion.process import VE, Cosine, Flow, Process, TrigFlow, VPContinuous, VPDiscrete, spread
from attar.diffusion.samplers import (
    cm_boundary,
    integrate,
    lcm_boundary,
    multistep_consistency,
    overshooting,
    segmented,
    start,
)
from attar.diffusion.schedulers import from_scheduler, scheduler_times, to_scheduler
from attar.diffusion.solvers import (
    ancestral,
    ddim,
    dpmpp_1,
    dpmpp_2m,
    drawing,
    eps_of_jump,
    euler,
    heun,
    renoise,
    runge_kutta2,
    segment_edge,
    x0_of_jump,
)
from attar.diffusion.tangents import along, normalised_tangent, scm_tangent
from attar.diffusion.transfer import Transferred, transfer, transfer_state, transfer_time
from attar.diffusion.view import Condition, View

__all__ = [
    "VE",
    "Condition",
    "Cosine",
    "Denoiser",
    "ExactView",
    "Flow",
    "GuidanceEmbedding",
    "Guided",
    "Mixture",
    "Prediction",
    "Process",
    "Transferred",
    "TrigFlow",
    "VPContinuous",
    "VPDiscrete",
    "View",
    "along",
    "ancestral",
    "check_prediction",
    "check_reading",
    "cm_boundary",
    "coefficients",
    "convert",
    "ddim",
    "diffusers_network",
    "dpmpp_1",
    "dpmpp_2m",
    "drawing",
    "eps_of_jump",
    "euler",
    "from_scheduler",
    "guidance_weight",
    "guide",
    "heun",
    "integrate",
    "lcm_boundary",
    "multistep_consistency",
    "normalised_tangent",
    "overshooting",
    "readings",
    "renoise",
    "runge_kutta2",
    "scheduler_times",
    "scm_tangent",
    "segment_edge",
    "segmented",
    "spread",
    "start",
    "to_scheduler",
    "to_x0_eps",
    "transfer",
    "transfer_state",
    "transfer_time",
    "x0_of_jump",
]

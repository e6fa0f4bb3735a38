"""LCM: consistency distillation of guided latent diffusion, and PixArt-δ's simpler setting (2310.04378, 2401.05252)."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from attar.artifacts.drawing import Solver
from attar.diffusion.consistency import Boundary
from attar.diffusion.specs import DiscreteProcess
from attar.losses.denoising import Distance
from attar.methods.sampler.consistency import Consistency
from attar.methods.sampler.core.teacher import TeacherGuidance
from attar.methods.sampler.core.times import Pairs
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.diffusion import Diffusion
from attar.run import AdamW
from attar.spec import method

SMALL: dict[str, Any] = {
    # v: small networks cannot afford that ε is divided by α = 0.006 where sampling begins
    "teaching": {**Diffusion.presets["small"], "process": {"kind": "vp", "betas": "linear"}, "prediction": "v"},
    "guidance": {"scale": 1.0, "highest": 4.0},
    # more steps draw better in one step and worse in four: what a small network forgets of low noise, where the loss
    # hardly asks, comes back as grain
    "train": {"steps": 1000, "batch": 128, "optimizer": {"lr": 5e-4}, "average_share": 0.05},
}
PIXART: dict[str, Any] = {
    "guidance": {"scale": 5.5, "highest": None, "embedded": False},
    "teaching": {"process": {"kind": "vp", "betas": "linear"}},
    "train": {"steps": 5000, "batch": 24, "optimizer": {"lr": 2e-5}},
}
LORA: dict[str, Any] = {
    "lora": {"rank": 64, "alpha": 64, "layers": "all"},
    "target": None,
    "guidance": {"scale": 4.0, "highest": 16.0, "embedded": False},
    "train": {"steps": 1000, "batch": 12, "optimizer": {"lr": 1e-4}},
}


@method
class LatentConsistency(Consistency):
    """Distil a guided teacher into 1 to 8 steps (Luo et al. 2023, arXiv 2310.04378; Chen et al. 2024, 2401.05252).

    Between neighbours of 50 levels, 20 of 1000 steps apart, one guided DDIM step of the teacher leads from t to s:
    L = E mean √((f_θ(x_t, w, t) − f_θ⁻(x_s, w, s))² + c²) − c over elements, f = c_skip x + c_out x̂0 with τ = 10 k, and
    θ⁻ an average. The last interval ends at level k = 0, not on clean data. The student is told w = g − 1, drawn for
    each sample; the preset `pixart` has one w = 4.5 instead and tells nothing, and `lora` trains low-rank updates that
    are their own target. The teacher stands on `process=vp`: betas linear for PixArt and DiT, scaled-linear for Stable
    Diffusion.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {"small": SMALL, "pixart": PIXART, "lora": LORA}

    teaching: Diffusion = Diffusion(process=DiscreteProcess(betas="scaled-linear"))
    guidance: TeacherGuidance = TeacherGuidance(scale=3.0, highest=15.0, embedded=True)  # w from 2 to 14
    train: SamplerTraining = SamplerTraining(
        steps=100_000, batch=72, optimizer=AdamW(lr=8e-6), average_share=0.0
    )  # the last weights come out, not the average that is aimed at
    pairs: Pairs = Pairs(intervals=50, ends_at="first-level")
    solver: Solver = "ddim"
    boundary: Boundary = "lcm"
    distance: Distance = "huber-element"
    constant: float | None = Field(0.001, gt=0)
    target: float | None = Field(0.95, ge=0, lt=1)
    steps: int | None = Field(4, ge=1)

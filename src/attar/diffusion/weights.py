"""Weights of denoising losses over time, for ‖x̂0 − x0‖² in the space of clean samples."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from attar.diffusion.process import VE, Process
from attar.errors import RecipeError, did_you_mean

Weighting = Literal["uniform", "snr", "truncated-snr", "snr+1", "edm"]


def denoising_weight(kind: Weighting, process: Process, t: Tensor) -> Tensor:
    """Return w(t) in float64, of the shape of t.

    | kind            | w                              | is                                                   |
    |-----------------|--------------------------------|------------------------------------------------------|
    | `uniform`       | 1                              | plain error of x0                                    |
    | `snr`           | α²/σ²                          | plain error of ε; infinite on clean data             |
    | `truncated-snr` | max(α²/σ², 1)                  | progressive distillation (2202.00512)                |
    | `snr+1`         | α²/σ² + 1                      | plain error of v where α² + σ² = 1                   |
    | `edm`           | (σ² + σ_d²) / (σ σ_d)²         | plain error of the prediction edm (2206.00364)       |

    Raises:
        RecipeError: an unknown kind, or `edm` on another process than VE.
    """
    if kind not in get_args(Weighting):
        raise RecipeError(f"unknown weighting '{kind}'{did_you_mean(kind, get_args(Weighting))}")
    t = t.double()
    if kind == "uniform":
        return torch.ones_like(t)
    if kind == "edm":
        if not isinstance(process, VE):
            raise RecipeError("the weighting 'edm' needs σ_data of VE (process=edm); 'snr+1' is its kin elsewhere")
        return 1 / t.square() + 1 / process.sigma_data**2
    ratio = (process.alpha(t) / process.sigma(t)).square()
    if kind == "snr":
        return ratio
    if kind == "truncated-snr":
        return ratio.clamp_min(1.0)
    return ratio + 1

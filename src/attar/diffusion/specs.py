"""Noise processes as specs: `process=edm` and `process.shift=3` work in every method, and artifacts keep them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from attar.diffusion.prediction import Prediction
from attar.diffusion.process import VE, Cosine, Flow, Process, TrigFlow, VPContinuous, VPDiscrete
from attar.errors import RecipeError
from attar.spec import kinds, spec


@spec
class FlowProcess:
    """Flow matching, α = 1 − t and σ = t on [0, 1]."""

    kind: Literal["flow"] = "flow"
    shift: float = Field(1.0, gt=0)  # of grids alone: above 1 spends more steps in the noise; SD3 uses 3

    def build(self) -> Process:
        """Return the process."""
        return Flow(shift=self.shift)

    @property
    def predicts(self) -> Prediction:
        """What networks of this process usually predict."""
        return "velocity"

    @property
    def time_scale(self) -> float:
        """What labels are multiplied by for networks of ours, which take times of about 1."""
        return 1.0


@spec
class CosineProcess:
    """The cosine process, φ = π/2 · (t + s) / (1 + s) on [0, 1]."""

    kind: Literal["cosine"] = "cosine"
    offset: float = Field(0.0, ge=0)  # s; improved DDPM uses 0.008

    def build(self) -> Process:
        """Return the process."""
        return Cosine(offset=self.offset)

    @property
    def predicts(self) -> Prediction:
        """What networks of this process usually predict."""
        return "v"

    @property
    def time_scale(self) -> float:
        """What labels are multiplied by for networks of ours."""
        return 1.0


@spec
class SdeProcess:
    """The variance-preserving SDE in continuous time on [0, 1]."""

    kind: Literal["vp-sde"] = "vp-sde"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)

    def build(self) -> Process:
        """Return the process."""
        return VPContinuous(beta_min=self.beta_min, beta_max=self.beta_max)

    @property
    def predicts(self) -> Prediction:
        """What networks of this process usually predict."""
        return "eps"

    @property
    def time_scale(self) -> float:
        """What labels are multiplied by for networks of ours."""
        return 1.0


@spec
class DiscreteProcess:
    """The noise levels of DDPM and Stable Diffusion: `linear` (DiT, PixArt), `scaled-linear` (SD), or any given."""

    kind: Literal["vp"] = "vp"
    betas: Literal["linear", "scaled-linear"] = "linear"
    beta_start: float | None = Field(None, gt=0)  # none: 1e-4, and 0.00085 scaled
    beta_end: float | None = Field(None, gt=0)  # none: 0.02, and 0.012 scaled
    steps: int = Field(1000, ge=1)
    alphas_cumprod: tuple[float, ...] | None = None  # ᾱ_k themselves, instead of the above

    def build(self) -> Process:
        """Return the process."""
        if self.alphas_cumprod is not None:
            return VPDiscrete(torch.tensor(self.alphas_cumprod, dtype=torch.float64))
        given = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        told = {name: value for name, value in given.items() if value is not None}
        make = VPDiscrete.linear if self.betas == "linear" else VPDiscrete.scaled_linear
        return make(steps=self.steps, **told)

    @property
    def predicts(self) -> Prediction:
        """What networks of this process usually predict."""
        return "eps"

    @property
    def time_scale(self) -> float:
        """What labels k = 0 … K − 1 are multiplied by for networks of ours."""
        return 1.0 / (self.steps if self.alphas_cumprod is None else len(self.alphas_cumprod))


@spec
class EdmProcess:
    """The variance-exploding process of EDM, α = 1 and σ = t on [0, 80]."""

    kind: Literal["edm"] = "edm"
    sigma_max: float = Field(80.0, gt=0)
    sigma_min: float = Field(0.002, gt=0)  # the last level of grids before clean data
    rho: float = Field(7.0, gt=0)  # curvature of grids
    sigma_data: float = Field(0.5, gt=0)  # standard deviation of the data

    def build(self) -> Process:
        """Return the process."""
        return VE(t_max=self.sigma_max, sigma_min=self.sigma_min, rho=self.rho, sigma_data=self.sigma_data)

    @property
    def predicts(self) -> Prediction:
        """What networks of this process usually predict."""
        return "edm"

    @property
    def time_scale(self) -> float:
        """What labels ¼ ln σ are multiplied by for networks of ours."""
        return 1.0


@spec
class TrigProcess:
    """TrigFlow, x_t = cos t · x0 + sin t · σ_d ε on [0, π/2]."""

    kind: Literal["trig"] = "trig"
    sigma_data: float = Field(0.5, gt=0)  # σ_d: standard deviation of the data

    def build(self) -> Process:
        """Return the process."""
        return TrigFlow(sigma_data=self.sigma_data)

    @property
    def predicts(self) -> Prediction:
        """What networks of this process usually predict."""
        return "trig"

    @property
    def time_scale(self) -> float:
        """What labels are multiplied by for networks of ours."""
        return 1.0


if TYPE_CHECKING:
    AnyProcess = FlowProcess | CosineProcess | SdeProcess | DiscreteProcess | EdmProcess | TrigProcess
else:
    AnyProcess = kinds(FlowProcess | CosineProcess | SdeProcess | DiscreteProcess | EdmProcess | TrigProcess)


def spec_of(process: Process) -> AnyProcess:
    """Return the spec that builds an equal process.

    Raises:
        RecipeError: a process of another class.
    """
    if isinstance(process, Flow):
        return FlowProcess(shift=process.shift)
    if isinstance(process, Cosine):
        return CosineProcess(offset=process.offset)
    if isinstance(process, VPContinuous):
        return SdeProcess(beta_min=process.beta_min, beta_max=process.beta_max)
    if isinstance(process, VPDiscrete):
        return DiscreteProcess(alphas_cumprod=tuple(process.alphas_cumprod.double().tolist()))
    if isinstance(process, VE):
        return EdmProcess(
            sigma_max=process.t_max, sigma_min=process.sigma_min, rho=process.rho, sigma_data=process.sigma_data
        )
    if isinstance(process, TrigFlow):
        return TrigProcess(sigma_data=process.sigma_data)
    raise RecipeError(f"a {type(process).__name__} has no spec, so nothing that is saved can hold it")

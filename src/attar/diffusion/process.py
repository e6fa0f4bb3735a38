"""Noise processes x_t = α_t x0 + σ_t ε with ε ~ N(0, I): data at t = 0, more noise at larger t.

Papers of the rectified-flow school run the other clock (t = 1 is data): there t' = 1 − t, and their velocity is minus
ours. The clock shared by all processes is the noise angle φ = atan2(σ, α) in [0, π/2]; it is finite at both ends, where
log-SNR is not. Times are tensors of any shape, and results have their shape and dtype: give float64 for exact work.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attar.errors import RecipeError

TOLERANCE = 1e-5  # of t_max: how far rounding in float32 may carry a time past the ends


def spread(values: Tensor, like: Tensor) -> Tensor:
    """Return values `[]` or `[n]` with dimensions of size 1 added, so that they multiply `like` `[n, …]` per sample.

    Raises:
        RecipeError: neither one value nor one per sample.
    """
    if values.dim() == 0:
        return values
    if values.dim() != 1 or len(values) not in (1, len(like)):
        raise RecipeError(
            f"one time or scale for all samples, or one each, is expected: [] or [{len(like)}]; "
            f"got the shape {list(values.shape)}"
        )
    return values.reshape(-1, *[1] * (like.dim() - 1))


class Process(ABC):
    """How data become noise: α, σ, their derivatives in t, and the inversion of the signal-to-noise ratio."""

    t_max: float  # the noisiest time

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return α_t, the factor of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return σ_t, the standard deviation of the noise."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return dα/dt."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return dσ/dt."""

    @abstractmethod
    def time_at(self, angle: Tensor) -> Tensor:
        """Return the time at which atan2(σ, α) is `angle`, the inverse of `angle`."""

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return α_t and σ_t for times `[]` or `[n]`, so that they multiply `like` `[n, …]` per sample."""
        return spread(self.alpha(t), like), spread(self.sigma(t), like)

    def angle(self, t: Tensor) -> Tensor:
        """Return the noise angle φ = atan2(σ_t, α_t) in [0, π/2]."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """Return λ_t = log(α_t / σ_t), half the logarithm of the signal-to-noise ratio; +∞ on clean data."""
        return self.alpha(t).log() - self.sigma(t).log()

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which log(α / σ) is `log_snr`, the inverse of `log_snr`."""
        return self.time_at(torch.atan(torch.exp(-log_snr)))

    def length(self, t: Tensor) -> Tensor:
        """Return √(α² + σ²), which is 1 where variance is preserved and never 0."""
        return torch.hypot(self.alpha(t), self.sigma(t))

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t = α_t x0 + σ_t ε for `x0` and `eps` `[n, …]` and times `[]` or `[n]`."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * eps

    def label(self, t: Tensor) -> Tensor:
        """Return what networks of this process are told about the time: t itself unless the class says otherwise."""
        return t

    def grid(self, steps: int) -> Tensor:
        """Return `steps` + 1 falling times `[steps + 1]` in float64 from `t_max` to 0, evenly spaced.

        Raises:
            RecipeError: fewer than one step.
        """
        return self.t_max * _fractions(steps)

    def share(self, t: Tensor) -> Tensor:
        """Return how far towards the noise times lie, 0 to 1: t / t_max unless the class says otherwise."""
        return t / self.t_max

    def time_of_share(self, share: Tensor) -> Tensor:
        """Return the time that lies so far towards the noise, the inverse of `share`."""
        return share * self.t_max

    def inside(self, t: Tensor) -> Tensor:
        """Return the times, those that rounding carried past an end put back on it.

        Raises:
            RecipeError: a time outside [0, t_max], or one that is no number.
        """
        held = t.clamp(0.0, self.t_max)
        if not torch.equal(held, t) and not bool(((t - held).abs() <= TOLERANCE * self.t_max).all()):
            low, high = float(t.min()), float(t.max())
            raise RecipeError(
                f"{type(self).__name__} runs from t = 0 (data) to t = {self.t_max:.6g} (noise); got times from "
                f"{low:.6g} to {high:.6g}. Convert the clock first: transfer() matches signal-to-noise ratios"
            )
        return held


def _fractions(steps: int) -> Tensor:
    if steps < 1:
        raise RecipeError(f"a grid of times has at least one step; got {steps}")
    return torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)


def even_places(intervals: int, steps: int) -> Tensor:
    """Return `steps` + 1 rising places from 0 to `intervals` on a grid, as even as whole numbers are."""
    return torch.linspace(0, intervals, steps + 1, dtype=torch.float64).round().long()


class VariancePreserving(Process):
    """A process with α² + σ² = 1, told by its angle: α = cos φ(t) and σ = sin φ(t)."""

    @abstractmethod
    def angle(self, t: Tensor) -> Tensor:
        """Return φ(t), rising in t."""

    @abstractmethod
    def angle_rate(self, t: Tensor) -> Tensor:
        """Return dφ/dt."""

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos φ(t) and sin φ(t), from one angle."""
        angle = spread(self.angle(t), like)
        return torch.cos(angle), torch.sin(angle)

    def alpha(self, t: Tensor) -> Tensor:
        """Return cos φ(t)."""
        return torch.cos(self.angle(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Return sin φ(t)."""
        return torch.sin(self.angle(t))

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return −sin φ · dφ/dt."""
        return -torch.sin(self.angle(t)) * self.angle_rate(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return cos φ · dφ/dt."""
        return torch.cos(self.angle(t)) * self.angle_rate(t)


@dataclass(frozen=True)
class VPContinuous(VariancePreserving):
    """The variance-preserving SDE with β(t) = β_min + t (β_max − β_min) on t in [0, 1] (Song et al. 2021, 2011.13456).

    log α_t = −t² (β_max − β_min) / 4 − t β_min / 2. dσ/dt is infinite at t = 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_max: float = 1.0

    def _decay(self, t: Tensor) -> Tensor:  # −log α
        return t * t * (self.beta_max - self.beta_min) / 4 + t * self.beta_min / 2

    def angle(self, t: Tensor) -> Tensor:
        """Return atan2(√(1 − α²), α), exact for small t."""
        decay = self._decay(t)
        return torch.atan2((-torch.expm1(-2 * decay)).sqrt(), torch.exp(-decay))

    def angle_rate(self, t: Tensor) -> Tensor:
        """Return ½ β(t) / tan φ(t)."""
        return 0.5 * (self.beta_min + t * (self.beta_max - self.beta_min)) / torch.tan(self.angle(t))

    def time_at(self, angle: Tensor) -> Tensor:
        """Return the root t ≥ 0 of t² (β_max − β_min) / 4 + t β_min / 2 = −log cos φ."""
        decay = -0.5 * torch.log1p(-torch.sin(angle).square())
        quarter, half = (self.beta_max - self.beta_min) / 4, self.beta_min / 2
        return 2 * decay / (half + (half * half + 4 * quarter * decay).sqrt())


@dataclass(frozen=True, eq=False)
class VPDiscrete(VariancePreserving):
    """The K noise levels of DDPM and Stable Diffusion: step k = 0 … K−1 stands at t = (k + 1) / K, clean data at t = 0.

    Between the levels the angle is linear in t, so a level ᾱ = 0 (zero terminal SNR) is allowed. `label` gives k, what
    the networks take. Many samplers stop at ᾱ_0, which is `time_of_step(0)`, and not at clean data.
    """

    alphas_cumprod: Tensor  # ᾱ_k [K], falling, in [0, 1)
    t_max: float = field(default=1.0, init=False)
    _angles: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        products = self.alphas_cumprod.detach().double().cpu()
        falling = products.dim() == 1 and len(products) > 0 and bool((products[1:] < products[:-1]).all())
        if not falling or not bool(((products >= 0) & (products < 1)).all()):
            raise RecipeError(
                "alphas_cumprod of a discrete process is a row of falling numbers in [0, 1), the product of 1 − beta; "
                f"got the shape {list(products.shape)}"
            )
        angles = torch.atan2((1 - products).sqrt(), products.sqrt())
        object.__setattr__(self, "_angles", torch.cat([angles.new_zeros(1), angles]))

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> VPDiscrete:
        """Return the linear schedule of DDPM (Ho et al. 2020, 2006.11239), also that of DiT and PixArt."""
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        return cls(torch.cumprod(1 - betas, 0))

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000) -> VPDiscrete:
        """Return Stable Diffusion's schedule, linear in √β (Rombach et al. 2022, 2112.10752)."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64).square()
        return cls(torch.cumprod(1 - betas, 0))

    @property
    def steps(self) -> int:
        """Return K."""
        return len(self._angles) - 1

    def time_of_step(self, step: Tensor | int) -> Tensor:
        """Return the time (k + 1) / K of step k in float64; k = −1 is clean data."""
        return (torch.as_tensor(step).double() + 1) / self.steps

    def label(self, t: Tensor) -> Tensor:
        """Return the step k = K t − 1; clean data are told k = 0."""
        return (t * self.steps - 1).clamp_min(0.0)

    def _interval(self, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left = place.long().clamp(0, self.steps - 1)
        angles = self._angles.to(place.device)
        return left, angles[left], angles[left + 1]

    def angle(self, t: Tensor) -> Tensor:
        """Return the angle, linear between the levels."""
        place = t.double() * self.steps
        left, low, high = self._interval(place)
        return torch.lerp(low, high, place - left).to(t.dtype)

    def angle_rate(self, t: Tensor) -> Tensor:
        """Return the slope of the interval that begins at or holds t."""
        _, low, high = self._interval(t.double() * self.steps)
        return ((high - low) * self.steps).to(t.dtype)

    def time_at(self, angle: Tensor) -> Tensor:
        """Return the time of an angle; beyond the last level the last slope goes on, so that `inside` can refuse."""
        exact, angles = angle.double(), self._angles.to(angle.device)
        right = torch.searchsorted(angles, exact.detach().contiguous(), right=True).clamp(1, self.steps)
        low, high = angles[right - 1], angles[right]
        return ((right - 1 + (exact - low) / (high - low)) / self.steps).to(angle.dtype)


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """The cosine process φ = π/2 · (t + s) / (1 + s) on t in [0, 1] (Nichol and Dhariwal 2021, 2102.09672).

    With an offset s > 0 (theirs is 0.008) the data at t = 0 are not quite clean; their division by ᾱ_0 is left out.
    """

    offset: float = 0.0
    t_max: float = 1.0

    def angle(self, t: Tensor) -> Tensor:
        """Return π/2 · (t + s) / (1 + s)."""
        return (t + self.offset) * (math.pi / 2 / (1 + self.offset))

    def angle_rate(self, t: Tensor) -> Tensor:
        """Return π/2 / (1 + s)."""
        return torch.full_like(t, math.pi / 2 / (1 + self.offset))

    def time_at(self, angle: Tensor) -> Tensor:
        """Return the time of an angle."""
        return angle * ((1 + self.offset) * 2 / math.pi) - self.offset


@dataclass(frozen=True)
class VE(Process):
    """The variance-exploding process of EDM, α = 1 and σ = t, on t in [0, 80] (Karras et al. 2022, 2206.00364)."""

    t_max: float = 80.0
    sigma_min: float = 0.002  # the last noise level of `grid` before clean data
    rho: float = 7.0  # curvature of `grid`
    sigma_data: float = 0.5  # standard deviation of the data, used by the prediction "edm"

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return t."""
        return t

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    def time_at(self, angle: Tensor) -> Tensor:
        """Return tan φ."""
        return torch.tan(angle)

    def grid(self, steps: int) -> Tensor:
        """Return (σ_max^{1/ρ} + i/(N−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ for i = 0 … N−1, and 0, in float64."""
        fractions = 1 - _fractions(max(steps - 1, 1))[: max(steps, 0)]
        low, high = self.sigma_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        _fractions(steps)
        return torch.cat([(high + fractions * (low - high)) ** self.rho, fractions.new_zeros(1)])

    def share(self, t: Tensor) -> Tensor:
        """Return the place on the grid, (σ^{1/ρ} − σ_min^{1/ρ}) / (σ_max^{1/ρ} − σ_min^{1/ρ})."""
        low, high = self.sigma_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        return (t ** (1 / self.rho) - low) / (high - low)

    def time_of_share(self, share: Tensor) -> Tensor:
        """Return the time at a place on the grid."""
        low, high = self.sigma_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        return ((low + share * (high - low)) ** self.rho).clamp_max(self.t_max)


@dataclass(frozen=True)
class Flow(Process):
    """Flow matching, α = 1 − t and σ = t on t in [0, 1]: velocity ε − x0 (Lipman et al. 2023, 2210.02747).

    The shift of SD3 and Wan warps the grid alone, t → s t / (1 + (s − 1) t); networks are told the warped time.
    """

    shift: float = 1.0  # s: above 1 spends more steps in the noise; SD3 uses 3
    t_max: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 − t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Return t."""
        return t

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return −1."""
        return -torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    def time_at(self, angle: Tensor) -> Tensor:
        """Return sin φ / (sin φ + cos φ)."""
        return torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))

    def shifted(self, t: Tensor) -> Tensor:
        """Return s t / (1 + (s − 1) t) (Esser et al. 2024, 2403.03206, section 5.3.2)."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def grid(self, steps: int) -> Tensor:
        """Return `steps` + 1 falling times in float64, evenly spaced and then shifted."""
        return self.shifted(self.t_max * _fractions(steps))


@dataclass(frozen=True)
class TrigFlow(Process):
    """TrigFlow, x_t = cos t · x0 + sin t · z with z ~ N(0, σ_d²), on t in [0, π/2] (Lu and Song 2024, 2410.11081).

    The noise z is σ_d ε, so σ_t = σ_d sin t and ε stays a unit normal like everywhere else.
    """

    sigma_data: float = 1.0  # σ_d: standard deviation of the data; sCM and SANA-Sprint use 0.5
    t_max: float = math.pi / 2

    def alpha(self, t: Tensor) -> Tensor:
        """Return cos t."""
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return σ_d sin t."""
        return self.sigma_data * torch.sin(t)

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return −sin t."""
        return -torch.sin(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return σ_d cos t."""
        return self.sigma_data * torch.cos(t)

    def time_at(self, angle: Tensor) -> Tensor:
        """Return atan2(sin φ, σ_d cos φ)."""
        return torch.atan2(torch.sin(angle), self.sigma_data * torch.cos(angle))

"""Gaussian mixtures with exact denoisers, scores and flow maps: teachers without error, for tests and test beds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.diffusion.process import Process
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError


@dataclass(frozen=True, eq=False)
class Mixture:
    """Σ_k w_k N(m_k, s_k² I) in d dimensions; `labels` says which class a component belongs to."""

    means: Tensor  # m_k [K, d]
    stds: Tensor  # s_k [K], positive
    weights: Tensor  # w_k [K], positive; they are made to sum to 1
    labels: Tensor  # class of a component [K], integers from 0

    def __post_init__(self) -> None:
        count = len(self.means)
        rows = [tuple(row.shape) for row in (self.stds, self.weights, self.labels)]
        if (
            self.means.dim() != 2
            or rows != [(count,)] * 3
            or not bool((self.stds > 0).all() & (self.weights > 0).all())
        ):
            raise RecipeError(
                "a mixture has means [K, d], and one positive std, one positive weight and one label for each; got "
                f"means {list(self.means.shape)} and rows {rows}"
            )

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 2.0, std: float = 0.1) -> Mixture:
        """Return equal Gaussians on a circle in the plane, each a class of its own, in float64."""
        angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
        means = radius * torch.stack([torch.cos(angle), torch.sin(angle)], 1)
        return cls(means, torch.full((modes,), std).double(), torch.ones(modes).double(), torch.arange(modes))

    @classmethod
    def gaussian(cls, mean: Tensor, std: float) -> Mixture:
        """Return one Gaussian of the mean `[d]`, in float64."""
        one = torch.ones(1, dtype=torch.float64)
        return cls(mean.double()[None], std * one, one, torch.zeros(1, dtype=torch.long))

    def sample(self, n: int, rng: torch.Generator, condition: Tensor | None = None) -> Tensor:
        """Return samples `[n, d]`, of the classes `condition` `[n]` if given (−1 is any class)."""
        log_weights = self.log_weights(n, condition)
        chosen = torch.multinomial(log_weights.exp(), 1, generator=rng).squeeze(1)
        noise = torch.randn(n, self.means.shape[1], generator=rng, dtype=self.means.dtype)
        return self.means[chosen] + self.stds[chosen, None] * noise

    def log_weights(self, n: int, condition: Tensor | None) -> Tensor:
        """Return the log weights `[n, K]`, −∞ on components of another class than the sample's."""
        weights = self.weights.expand(n, -1)
        if condition is not None:
            asked = condition.to(self.labels.device).reshape(-1, 1)
            if not bool(((asked == self.labels) | (asked == -1)).any(1).all()):
                raise RecipeError("a class was asked for that no component of the mixture has; −1 stands for any class")
            weights = weights * ((asked == self.labels) | (asked == -1))
        return (weights / weights.sum(1, keepdim=True)).log()

    def log_density(self, x: Tensor, t: Tensor, process: Process, condition: Tensor | None = None) -> Tensor:
        """Return log p_t(x) `[n]` of x `[n, d]` after noising; t is `[]` or `[n]`."""
        return torch.logsumexp(self._log_joint(x, t, process, condition)[0], 1)

    def _log_joint(
        self, x: Tensor, t: Tensor, process: Process, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = process.levels(t, x)  # [] or [n, 1]
        offset = x[:, None, :] - alpha[..., None] * self.means
        variance = alpha.square() * self.stds.square() + sigma.square()  # [K] or [n, K]
        variance = variance.expand(len(x), -1)
        quadratic = offset.square().sum(2) / variance + x.shape[1] * (2 * math.pi * variance).log()
        return self.log_weights(len(x), condition) - 0.5 * quadratic, offset, variance

    def view(self, process: Process) -> ExactView:
        """Return the mixture as a generator on a process; conditions are labels `[n]`, −1 or none for any class."""
        return ExactView(self, process)

    def flow_map(self, x: Tensor, t: Tensor, s: Tensor, process: Process) -> Tensor:
        """Return where the probability-flow ODE carries x `[n, d]` from time t to s (both `[]`), exactly.

        One Gaussian: α_s m + √((α_s² c² + σ_s²) / (α_t² c² + σ_t²)) (x − α_t m). One dimension: the point with the same
        distribution function, found by bisection to float64 precision.

        Raises:
            RecipeError: several components in several dimensions, whose flow map has no closed form.
        """
        if len(self.means) == 1:
            widths = [(process.alpha(u) * self.stds).square() + process.sigma(u).square() for u in (t, s)]
            offset = x - process.alpha(t) * self.means
            return process.alpha(s) * self.means + (widths[1] / widths[0]).sqrt() * offset
        if self.means.shape[1] != 1:
            raise RecipeError(
                "the flow map of several Gaussians has a closed form in one dimension only; integrate their exact "
                "denoiser with solvers.sample(mixture.view(process), …, heun) and many steps"
            )
        # deep in a tail 1 − F loses its digits, so the smaller of F and 1 − F is matched
        wanted = self._tails(x, t, process)
        reach = 40.0 * (self.means.abs().max() + self.stds.max() + process.length(s))
        low, high = torch.full_like(x, -float(reach)), torch.full_like(x, float(reach))
        for _ in range(80):
            middle = (low + high) / 2
            lower, upper = self._tails(middle, s, process)
            before = torch.where(wanted[0] < wanted[1], lower < wanted[0], upper > wanted[1])
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return (low + high) / 2

    def _tails(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        width = ((process.alpha(t) * self.stds).square() + process.sigma(t).square()).sqrt()
        z = (x - process.alpha(t) * self.means[:, 0]) / width
        weights = self.weights / self.weights.sum()
        lower, upper = (torch.special.ndtr(sign * z) @ weights for sign in (1.0, -1.0))
        return lower[:, None], upper[:, None]


@dataclass(frozen=True, eq=False)
class ExactView(View):
    """The exact denoiser of a mixture: x0 = Σ_k ρ_k(x) [m_k + s_k² α (x − α m_k) / (α² s_k² + σ²)]."""

    mixture: Mixture
    process: Process

    def x0_eps(self, x: Tensor, t: Tensor, condition: Condition = None) -> tuple[Tensor, Tensor]:
        """Return E[x0 | x] and E[ε | x] = Σ_k ρ_k σ (x − α m_k) / (α² s_k² + σ²), both `[n, d]`, at any time.

        Raises:
            RecipeError: a condition that is no row of labels, or a time outside the process.
        """
        if isinstance(condition, dict) or not (condition is None or isinstance(condition, Tensor)):
            raise RecipeError("a mixture is conditioned on a row of labels [n], −1 for any class")
        t = self.process.inside(t.to(self.mixture.means.dtype))
        joint, offset, variance = self.mixture._log_joint(x, t, self.process, condition)
        share = torch.softmax(joint, 1)
        pull = offset / variance[..., None]  # [n, K, d]
        alpha, sigma = self.process.levels(t, x)
        gain = self.mixture.stds.square()[:, None] * pull
        x0 = torch.einsum("nk,nkd->nd", share, self.mixture.means + alpha[..., None] * gain)
        eps = sigma * torch.einsum("nk,nkd->nd", share, pull)
        return x0.to(x.dtype), eps.to(x.dtype)

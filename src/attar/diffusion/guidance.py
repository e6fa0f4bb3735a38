"""Classifier-free guidance in both published conventions, per sample and within an interval of noise.

| convention | formula                          | no guidance | used by                                                |
|------------|----------------------------------|-------------|--------------------------------------------------------|
| `g`        | u + g (c − u)                    | g = 1       | Imagen, Stable Diffusion, MLCM, SANA-Sprint, rCM       |
| `w`        | (1 + w) c − w u                  | w = 0       | Ho and Salimans (2207.12598), guided distillation, LCM |

The two agree for g = 1 + w. c and u are the predictions with the condition and with the null condition; x0, ε, v and
velocity may be mixed alike, since all are linear in one another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attar.diffusion.process import Process, spread
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError

Convention = Literal["g", "w"]


def guidance_weight(scale: float | Tensor, convention: Convention) -> Tensor:
    """Return a guidance scale as g of u + g (c − u), in float64.

    Raises:
        RecipeError: an unknown convention, or a scale that pushes away from the condition (g < 0, w < −1).
    """
    if convention not in get_args(Convention):
        raise RecipeError(
            f"unknown guidance convention '{convention}': 'g' is u + g (c − u), off at 1; "
            "'w' is (1 + w) c − w u, off at 0"
        )
    weight = torch.as_tensor(scale).double() + (1.0 if convention == "w" else 0.0)
    if not bool((weight >= 0).all()):
        low = float((weight - (1.0 if convention == "w" else 0.0)).min())
        raise RecipeError(
            f"guidance {convention} = {low:g} pushes away from the condition: in the convention "
            + ("'g', u + g (c − u), g is at least 0 and off at 1" if convention == "g" else "")
            + ("'w', (1 + w) c − w u, w is at least −1 and off at 0" if convention == "w" else "")
        )
    return weight


def guide(conditional: Tensor, null: Tensor, scale: float | Tensor, convention: Convention) -> Tensor:
    """Return the guided prediction of `[n, …]` predictions with and without the condition; `scale` is `[]` or `[n]`.

    Raises:
        RecipeError: see `guidance_weight`.
    """
    weight = spread(guidance_weight(scale, convention).to(conditional.device), conditional)
    return (null + weight * (conditional - null)).to(conditional.dtype)


@dataclass(frozen=True, eq=False)
class Guided(View):
    """A guided generator: one call with the condition and the null condition in one batch of 2n (n where it is off).

    A negative condition takes the place of `null`. Outside `interval` (times, both ends included) guidance is off
    (Kynkäänniemi et al. 2024, arXiv 2404.07724).
    """

    view: View
    null: Condition  # the null or negative condition: one row, or one a sample
    scale: float | Tensor  # guidance scale in the convention below, [] or [n]
    convention: Convention  # "g": u + g (c − u), off at 1; "w": (1 + w) c − w u, off at 0
    interval: tuple[float, float] | None = None  # times of the process between which guidance is on; none is always

    def __post_init__(self) -> None:
        guidance_weight(self.scale, self.convention)
        if self.null is None:
            raise RecipeError(
                "guidance compares the condition with a null condition, and this teacher has none: give null= (the "
                "label or embedding it was trained with when the condition was dropped), or do without guidance"
            )
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise RecipeError(f"a guidance interval is (lowest time, highest time); got {self.interval}")

    @property
    def process(self) -> Process:  # type: ignore[override]
        """Return the process of the guided generator."""
        return self.view.process

    def weights(self, t: Tensor) -> Tensor:
        """Return g at the times t, 1 outside the interval: `[]` or `[n]` in float64."""
        weight = guidance_weight(self.scale, self.convention).to(t.device)
        if self.interval is None:
            return weight
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        return torch.where(inside, weight, torch.ones_like(weight))

    def x0_eps(self, x: Tensor, t: Tensor, condition: Condition = None) -> tuple[Tensor, Tensor]:
        """Return the guided clean sample and noise `[n, …]`.

        Raises:
            RecipeError: no condition to guide towards, or conditions of other names or shapes than the null condition.
        """
        if condition is None:
            raise RecipeError("guidance needs a condition to guide towards; call the unguided generator without one")
        weight = self.weights(t)
        if bool((weight == 1).all()):
            return self.view.x0_eps(x, t, condition)
        n = len(x)
        twice = torch.cat([t, t]) if t.dim() else t
        x0, eps = self.view.x0_eps(torch.cat([x, x]), twice, _joined(condition, self.null, n))
        return guide(x0[:n], x0[n:], weight, "g"), guide(eps[:n], eps[n:], weight, "g")


def _joined(condition: Condition, null: Condition, n: int) -> Condition:
    if isinstance(condition, Tensor) and isinstance(null, Tensor):
        rows = null if null.dim() == condition.dim() else null[None]
        if rows.shape[1:] != condition.shape[1:] or len(rows) not in (1, n):
            raise RecipeError(
                f"the null condition has the shape of a condition, one row or n: {list(condition.shape)} was asked, "
                f"and null is {list(null.shape)}"
            )
        return torch.cat([condition, rows.to(condition).expand(n, *rows.shape[1:])])
    if isinstance(condition, Mapping) and isinstance(null, Mapping) and condition.keys() == null.keys():
        both = {name: _joined(condition[name], null[name], n) for name in condition}
        return {name: value for name, value in both.items() if isinstance(value, Tensor)}
    raise RecipeError("the null condition has the form of the condition: a tensor, or tensors of the same names")


class GuidanceEmbedding(nn.Module):
    """An embedding of the guidance scale that is zero at first, to be added to a network's time embedding.

    sin and cos of 1000 w at `features` / 2 frequencies from 1 to 1/10000, then a linear layer that begins at zero, so
    that the teacher's weights start out as the teacher (Meng et al. 2023, 2210.03142; LCM, 2310.04378). w in the
    convention 'w'.
    """

    covers_submodules = True  # `reset_parameters` speaks for the layer inside

    def __init__(self, width: int, features: int = 256, factor: float = 1000.0) -> None:
        super().__init__()
        if features < 4 or features % 2:
            raise RecipeError(f"a guidance embedding has an even number of features, at least 4; got {features}")
        self.features, self.factor = features, factor
        self.project = nn.Linear(features, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the layer to zero."""
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, scale: Tensor) -> Tensor:
        """Return the embedding `[n, width]` of scales `[n]`."""
        half = self.features // 2
        powers = torch.arange(half, device=scale.device, dtype=torch.float32) / (half - 1)
        angles = scale[:, None] * (self.factor * torch.exp(-math.log(10000.0) * powers))
        embedded: Tensor = self.project(torch.cat([angles.sin(), angles.cos()], 1).to(self.project.weight.dtype))
        return embedded

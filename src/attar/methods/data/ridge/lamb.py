"""LAMB, the optimizer of FRePo: Adam whose steps are as long as the tensor they move."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.run import SGD, Adam
from attar.run.optimizers import AdamW
from attar.spec import kinds, spec


class _Lamb(torch.optim.Optimizer):
    """See `Lamb`."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            first_decay, second_decay = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["first"], state["second"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                state["first"].lerp_(parameter.grad, 1 - first_decay)
                state["second"].lerp_(parameter.grad.square(), 1 - second_decay)
                age = float(state["step"])
                first, second = state["first"] / (1 - first_decay**age), state["second"] / (1 - second_decay**age)
                update = first / (second.sqrt() + group["eps"])
                length, pace = parameter.norm(), update.norm()
                trust = torch.where((length > 0) & (pace > 0), length / pace, torch.ones_like(length))
                parameter.sub_(group["lr"] * trust * update)


@spec
class Lamb:
    """θ ← θ − lr · ‖θ‖ / ‖u‖ · u, with u the step of Adam, tensor by tensor (You et al. 2020, arXiv 1904.00962)."""

    kind: Literal["lamb"] = "lamb"
    lr: float = Field(1e-3, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-6, gt=0)

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer over `parameters`."""
        return _Lamb(parameters, self.lr, (self.beta1, self.beta2), self.eps)


SupportOptimizer = kinds(SGD | Adam | AdamW | Lamb)

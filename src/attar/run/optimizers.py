"""Optimizers and schedules as frozen specs, so that `optimizer.lr=0.1` and `optimizer=adam` work in every method."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from attar.spec import kinds, spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@functools.cache
def _light(kind: Any) -> Any:
    """Return a torch optimizer without the wrappers that import torch's compiler, a second at its first use.

    They tell the compiler to leave the optimizer alone, and no optimizer is compiled here.
    """
    import torch

    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def _made(kind: Any, parameters: Iterable[Any], lr: float, **settings: Any) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = _light(kind)(parameters, lr, **settings)
    return made


def _fused(parameters: Iterable[Tensor]) -> bool | None:
    """Say that one pass of a kernel updates each tensor, on CPUs, where the usual ten operations cost Adam its time."""
    return all(p.device.type == "cpu" and p.is_floating_point() for p in parameters) or None


@spec
class SGD:
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.01, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    nesterov: bool = False

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return the torch optimizer over `parameters`."""
        import torch

        settings = {"momentum": self.momentum, "weight_decay": self.weight_decay, "nesterov": self.nesterov}
        return _made(torch.optim.SGD, parameters, self.lr, **settings)


@spec
class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980)."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(1e-3, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return the torch optimizer over `parameters`."""
        import torch

        betas, every = (self.beta1, self.beta2), list(parameters)
        return _made(torch.optim.Adam, every, self.lr, betas=betas, eps=self.eps, fused=_fused(every))


@spec
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    decays: Literal["all", "weights"] = "all"  # weights: no bias and no scale or shift of a norm, as SRe2L has it

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return the torch optimizer over `parameters`; with `decays="weights"` it spares those of one dimension."""
        import torch

        betas, every = (self.beta1, self.beta2), list(parameters)
        groups: list[dict[str, object]] = [{"params": every}]
        if self.decays == "weights":
            spared = [p for p in every if p.dim() < 2]
            groups = [{"params": [p for p in every if p.dim() > 1]}, {"params": spared, "weight_decay": 0.0}]
        settings = {"eps": self.eps, "weight_decay": self.weight_decay, "fused": _fused(every)}
        return _made(torch.optim.AdamW, groups, self.lr, betas=betas, **settings)


@spec
class RAdam:
    """Adam whose adaptive rate waits until its variance is known (Liu et al. 2020, arXiv 1908.03265)."""

    kind: Literal["radam"] = "radam"
    lr: float = Field(1e-3, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return the torch optimizer over `parameters`."""
        import torch

        return _made(torch.optim.RAdam, parameters, self.lr, betas=(self.beta1, self.beta2), eps=self.eps)


if TYPE_CHECKING:
    Optimizer = SGD | Adam | AdamW | RAdam
else:
    Optimizer = kinds(SGD | Adam | AdamW | RAdam)


@spec
class Constant:
    """The same learning rate throughout."""

    kind: Literal["constant"] = "constant"

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied by at `step` of `steps`."""
        return 1.0


@spec
class Warmed:
    """Linear warm-up, then a curve from 1 down to `final`."""

    warmup: int = Field(0, ge=0)  # steps
    final: float = Field(0.0, ge=0)  # share of the learning rate at the last step

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied by at `step` of `steps`."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        progress = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        return self.final + (1 - self.final) * self.left(progress)

    def left(self, progress: float) -> float:
        """Return how much is left, from 1 to 0, when a share of the steps behind the warm-up is done."""
        return 1 - progress


@spec
class Linear(Warmed):
    """Linear warm-up, then a straight line from 1 down to `final`."""

    kind: Literal["linear"] = "linear"


@spec
class Cosine(Warmed):
    """Linear warm-up, then half a cosine from 1 down to `final`."""

    kind: Literal["cosine"] = "cosine"

    def left(self, progress: float) -> float:
        """Return how much is left: half a cosine."""
        return (1 + math.cos(math.pi * progress)) / 2


@spec
class Drop:
    """Multiply the learning rate by `by` at each of the given shares of the run."""

    kind: Literal["drop"] = "drop"
    at: tuple[float, ...] = (0.5,)  # shares of the steps
    by: float = Field(0.1, gt=0)

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied by at `step` of `steps`."""
        return self.by ** sum(step >= round(share * steps) for share in self.at)


if TYPE_CHECKING:
    Schedule = Constant | Cosine | Linear | Drop
else:
    Schedule = kinds(Constant | Cosine | Linear | Drop)

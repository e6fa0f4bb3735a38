"""How a generator is trained: batches, optimizer, schedule and averages of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.data import Samples
from attar.diffusion.tangents import repeatable
from attar.run import Adam, Constant, Decay, Learner, Optimizer, Run, Schedule
from attar.spec import spec

T = TypeVar("T")
S = TypeVar("S")

EVALUATED = "evaluated"  # name of the average of the weights that comes out


@spec
class SamplerTraining:
    """How a generator's weights are trained."""

    steps: int = Field(4000, ge=1)
    batch: int = Field(128, ge=1)  # samples a step
    optimizer: Optimizer = Adam(lr=1e-3)
    schedule: Schedule = Constant()
    clip: float | None = Field(1.0, gt=0)  # largest length of the gradient
    average_share: float = Field(0.05, ge=0, le=1)  # horizon of the weights' average that comes out, of the steps
    average: float | None = Field(None, ge=0, lt=1)  # its decay itself; 0 in either: the last weights come out
    skip_nonfinite: bool = False  # leave steps with a NaN gradient out and count them, instead of an error

    @property
    def decay(self) -> float:
        """The decay of the average that comes out, 0 for none."""
        if self.average is not None:
            return self.average
        return max(0.0, 1 - 1 / max(1.0, self.average_share * self.steps))

    def learner(
        self, run: Run, name: str, module: nn.Module, *, target: float | None = None, steps: int | None = None
    ) -> Learner:
        """Register a module as a learner; `target` is the decay of one more average, called `target`."""
        averages = {EVALUATED: Decay(decay=self.decay)} if self.decay else {}
        if target is not None:
            averages["target"] = Decay(decay=target)
        return run.learner(
            name,
            module,
            self.optimizer,
            schedule=self.schedule,
            steps=steps or self.steps,
            ema=averages,
            clip=self.clip,
            on_nonfinite="skip" if self.skip_nonfinite else "raise",
        )


def trained(learner: Learner) -> nn.Module:
    """Return the module that comes out: the average of the weights, where one is kept."""
    module: Any = learner.ema.get(EVALUATED, learner.module)
    made: nn.Module = module.eval()
    return made


def begin_again(learner: Learner) -> dict[str, Tensor]:
    """Let a learner start anew from the module that would come out, and return its weights."""
    weights = {name: tensor.detach().clone() for name, tensor in trained(learner).state_dict().items()}
    assert learner.module is not None
    learner.module.load_state_dict(weights)
    learner.reset(lambda _: None)  # averages start again from the module, too
    return weights


@dataclass(frozen=True, eq=False)
class Batch:
    """This process's rows of a step's samples, on the run's device.

    Attributes:
        x0: clean samples `[n, *shape]`.
        noise: unit noise like them.
        condition: what networks are told of them, or none.
        rows: their places in the whole batch.
        total: samples in the whole batch.
    """

    x0: Tensor
    noise: Tensor
    condition: Tensor | None
    rows: slice
    total: int

    def mine(self, values: Tensor) -> Tensor:
        """Return this process's rows of what was drawn for the whole batch `[total, …]`, on its device."""
        return values[self.rows].to(self.x0.device)

    def mean(self, values: Tensor) -> Tensor:
        """Return this process's share of the mean over the whole batch, of its rows' values `[n]`."""
        return values.sum() / self.total


def batch_of(run: Run, data: Samples, size: int, *counters: int, drop: float = 0.0) -> Batch:
    """Draw a step's samples, noise and conditions, a share of which is dropped; `counters` tell draws apart."""
    x0, condition = data.draw(size, run.rng("data", *counters))
    condition = dropped(condition, data.null, drop, run.rng("drop", *counters))
    noise = torch.randn(x0.shape, generator=run.rng("noise", *counters))
    rows = run.shard(size)
    x0, noise = (part[rows].to(run.device) for part in (x0, noise))
    return Batch(x0, noise, None if condition is None else condition[rows].to(run.device), rows, size)


def dropped(condition: Tensor | None, null: Tensor | None, share: float, rng: torch.Generator) -> Tensor | None:
    """Return conditions `[n, …]` of which about a share became the null condition, sample by sample."""
    if condition is None or null is None or not share:
        return condition
    gone = torch.rand(len(condition), generator=rng) < share
    rows = gone.reshape(-1, *[1] * (condition.dim() - 1)).to(condition.device)
    return torch.where(rows, null.to(condition), condition)


def alike(first: Callable[[], T], second: Callable[[], S]) -> tuple[T, S]:
    """Return what both give, the second with the same dropout masks: torch's generators start alike for both."""
    again = repeatable(second)
    return first(), again()

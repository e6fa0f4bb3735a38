"""A learner: parameters with their own optimizer. `step()` is the one place where gradients of all processes meet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.errors import NonFinite
from attar.spec import spec

if TYPE_CHECKING:
    from attar.run.optimizers import Constant
    from attar.run.run import Run

Target = nn.Module | Tensor | Sequence[Tensor]


@spec
class Decay:
    """An exponential moving average: `average ← decay · average + (1 − decay) · parameters` after each step."""

    decay: float = Field(ge=0, lt=1)


class Learner:
    """Parameters that a run optimises: a module's, one tensor's (synthetic pixels) or several tensors'.

    Made by `run.learner(…)`, which registers it for checkpoints. Schedules and averages count the learner's own steps.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        target: Target,
        optimizer: Any,
        *,
        schedule: Constant | None = None,
        steps: int = 0,
        ema: Mapping[str, Decay] | None = None,
        clip: float | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.run, self.name, self.target = run, name, target
        self.module = target if isinstance(target, nn.Module) else None
        self.parameters = _parameters(target)
        self.spec, self.schedule, self.total_steps = optimizer, schedule, steps
        self.clip, self.on_nonfinite = clip, on_nonfinite
        self.optimizer: torch.optim.Optimizer = optimizer.build(self.parameters)
        self.decays = dict(ema or {})
        self.ema: dict[str, Any] = {key: _average(target) for key in self.decays}
        self._averaged = {key: _trained(average, target) for key, average in self.ema.items()}
        self._buffers = {key: _buffers(average, target) for key, average in self.ema.items()}
        self.steps = 0  # the learner's own
        self.taken = 0  # steps since the beginning, which `reset` does not forget
        self.skipped = 0  # steps left out because a gradient was not finite
        self._watched: dict[str, list[tuple[int, Tensor]]] = {}  # term -> (loop step, scalar) since the last check

    def update(self, loss: Tensor | Mapping[str, Tensor]) -> None:
        """Send the gradients of a scalar loss, or of the sum of named terms, to this learner, and step."""
        self.run.backward(loss, self)
        self.step()

    def add_grads(self, gradients: Sequence[Tensor | None]) -> None:
        """Add hand-made gradients, one per parameter (None for none)."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def step(self) -> None:
        """Sum the gradients over processes, apply them, forget them; then advance schedule and averages."""
        self.run.sum_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else None
        if norms is not None and self._finite(norms.sum()):
            if self.clip is not None:
                norm = torch.linalg.vector_norm(norms)
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm, foreach=True)
            if self.schedule is not None:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.spec.lr * self.schedule.factor(self.steps, self.total_steps)
            self.optimizer.step()
            self.steps += 1
            self.taken += 1
            self._advance_averages()
        for parameter in self.parameters:
            parameter.grad = None

    def reset(self, initialise: Callable[[Target], object] | None = None) -> None:
        """Renew what a new outer round renews: optimizer state, own step count and, if given, the parameters.

        Averages start again from the new parameters.
        """
        if initialise is not None:
            initialise(self.target)
            for average in self.ema.values():
                _restore(average, _state(self.target))
        self.optimizer = self.spec.build(self.parameters)
        self.steps = 0

    def watch(self, term: str, value: Tensor) -> None:
        """Keep a scalar, where it is, until `raise_if_nonfinite` looks at it; skipping learners need not."""
        if self.on_nonfinite == "raise":
            self._watched.setdefault(term, []).append((self.run.step, value.detach()))

    def raise_if_nonfinite(self) -> None:
        """Look at what was watched since the last time.

        Raises:
            NonFinite: a watched loss or gradient was NaN or infinite.
        """
        watched, self._watched = self._watched, {}
        for term, values in watched.items():
            finite = torch.isfinite(torch.stack([value for _, value in values])).tolist()
            if not all(finite):
                step = values[finite.index(False)][0]
                raise NonFinite(
                    f"{term} of learner '{self.name}' became NaN or infinite at step {step} of loop "
                    f"'{self.run.loop_name}'. Nothing after the last checkpoint was saved; "
                    "lower the learning rate, such as train.optimizer.lr, or leave such steps out with "
                    "train.skip_nonfinite=yes where the method has it"
                )

    def raise_if_mostly_skipped(self) -> None:
        """Look at how many steps were left out until now.

        Raises:
            NonFinite: more than half of them.
        """
        if self.skipped > self.taken:
            raise NonFinite(
                f"{self.skipped} of {self.taken + self.skipped} steps of learner '{self.name}' were left out, since "
                f"their gradients were NaN or infinite (until the end of loop '{self.run.loop_name}'): this is no "
                "training. Lower the learning rate, such as train.optimizer.lr"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, gradients that wait for a step, optimizer, counts and averages."""
        waiting = [p.grad for p in self.parameters]
        return {
            "target": _state(self.target),
            "gradients": waiting if any(g is not None for g in waiting) else None,
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "taken": self.taken,
            "skipped": self.skipped,
            "ema": {key: _state(average) for key, average in self.ema.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place what `state_dict` gave."""
        _restore(self.target, state["target"])
        waiting = state["gradients"] or [None] * len(self.parameters)
        for parameter, gradient in zip(self.parameters, waiting, strict=True):
            parameter.grad = gradient
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.skipped = state["steps"], state["skipped"]
        self.taken = state.get("taken", self.steps)  # checkpoints of before it was counted
        for key, average in self.ema.items():
            _restore(average, state["ema"][key])
        self._watched = {}

    def _finite(self, norm: Tensor) -> bool:
        if self.on_nonfinite == "raise":
            self.watch("the gradient", norm)
            return True
        if bool(torch.isfinite(norm)):  # skipping must know now, which costs a synchronisation
            return True
        self.skipped += 1
        self.run.log({f"{self.name}/skipped": self.skipped})
        return False

    @torch.no_grad()
    def _advance_averages(self) -> None:
        for key, averaged in self._averaged.items():
            torch._foreach_lerp_(averaged, self.parameters, 1 - self.decays[key].decay)
            for mine, theirs in self._buffers[key]:
                mine.copy_(theirs)


def _parameters(target: Target, *, leaf: bool = True) -> list[Tensor]:
    if isinstance(target, nn.Module):
        return [p for p in target.parameters() if p.requires_grad or not leaf]
    tensors = [target] if isinstance(target, Tensor) else list(target)
    return [t.requires_grad_() for t in tensors] if leaf else tensors


def _average(target: Target) -> Any:
    if isinstance(target, nn.Module):
        return copy.deepcopy(target).requires_grad_(False).eval()
    clones = [t.detach().clone() for t in _parameters(target, leaf=False)]
    return clones[0] if isinstance(target, Tensor) else clones


def _trained(average: Any, target: Target) -> list[Tensor]:
    """Return the tensors of an average whose counterparts in the target are trained."""
    if isinstance(target, nn.Module):
        return [a for a, p in zip(average.parameters(), target.parameters(), strict=True) if p.requires_grad]
    return _parameters(average, leaf=False)


def _buffers(average: Any, target: Target) -> list[tuple[Tensor, Tensor]]:
    """Return the buffers of an average, each with that of the target which it copies."""
    if not isinstance(target, nn.Module):
        return []
    return list(zip(average.buffers(), target.buffers(), strict=True))


def _state(target: Any) -> Any:
    if isinstance(target, nn.Module):
        return dict(target.state_dict())
    return _parameters(target, leaf=False)


@torch.no_grad()
def _restore(target: Any, state: Any) -> None:
    if isinstance(target, nn.Module):
        target.load_state_dict(state)
        return
    for mine, saved in zip(_parameters(target, leaf=False), state, strict=True):
        mine.copy_(saved)

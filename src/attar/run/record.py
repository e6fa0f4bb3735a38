"""What a step of a loop logs: its losses, which add up over chunks and processes, and everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attar.run.processes import Processes


class Record:
    """The record of the step that is under way."""

    def __init__(self) -> None:
        self.due = False  # whether this step's losses are wanted
        self._values: dict[str, Any] = {}
        self._losses: dict[str, Any] = {}
        self._last: dict[str, float] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        """Take numbers as they are; a later one of the same name replaces the former."""
        self._values.update(values)

    def add_loss(self, name: str, loss: Tensor) -> None:
        """Add a chunk's share of a loss, if this step is logged."""
        if self.due:
            self._losses[name] = self._losses.get(name, 0.0) + loss.detach()

    def close(self, processes: Processes) -> dict[str, float]:
        """Return what the step logs, losses summed over processes, and begin the next."""
        losses = self._losses if processes.world == 1 or not self.due else processes.sum_named(floats(self._losses))
        closed = floats({**losses, **self._values})
        self.clear()
        self._last = closed or self._last
        return closed

    def clear(self) -> None:
        """Forget the step."""
        self.due, self._values, self._losses = False, {}, {}

    def note(self) -> str:
        """Return the first two numbers of the last record, for the progress bar."""
        return " · ".join(f"{name.rpartition('/')[2]} {value:.4g}" for name, value in list(self._last.items())[:2])


def floats(values: Mapping[str, Any]) -> dict[str, float]:
    """Return plain numbers of scalars and scalar tensors."""
    return {name: float(value) for name, value in values.items()}

"""Roll-outs of a student with gradients: the whole way costs memory, the last prediction alone does not."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.artifacts.drawing import grid_of
from attar.diffusion import segmented, start
from attar.diffusion.view import Condition, View


def late_sample(student: View, noise: Tensor, condition: Condition, rng: torch.Generator, steps: int = 8) -> Tensor:
    """Return clean samples `[n, …]` predicted at a time late in a roll-out from unit noise, drawn with `rng`.

    The student jumps along a grid of `steps` without gradient to one of its later half, and predicts the rest with.
    """
    times = grid_of(student.process, steps).to(noise.device)
    place = int(torch.randint(max(1, steps // 2), steps, (), generator=rng))
    with torch.no_grad():
        x = segmented(student, start(student.process, times[0], noise), times[: place + 1], condition)
    return student.x0(x, times[place].expand(len(x)), condition)

"""Roll-outs of a student with gradients: the whole way costs memory, the last prediction alone does not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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


def redrawn(student: View, times: Sequence[Tensor], noise: Sequence[Tensor], condition: Condition) -> Tensor:
    """Return clean samples `[n, …]` of a consistency sampler, with a gradient through its last prediction alone.

    It begins from unit noise `noise[0]` at `times[0]` `[n]`, and takes one more of both for each further step; times do
    not rise. Weights are the same at every step, so that earlier steps would be learned as their own last ones.
    """
    x = start(student.process, times[0], noise[0])
    with torch.no_grad():
        for (t, s), fresh in zip(itertools.pairwise(times), noise[1:], strict=True):
            x = student.process.diffuse(student.x0(x, t, condition), fresh, s).to(x.dtype)
    return student.x0(x, times[-1], condition)

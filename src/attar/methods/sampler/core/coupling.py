"""A stage that stores where a teacher carries noise: the pairs of reflow, and trajectories for whatever reads them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attar.artifacts.couplings import Couplings
from attar.artifacts.drawing import SOLVERS, Solver, grid_of
from attar.artifacts.sampler import CHUNK
from attar.data import Samples
from attar.diffusion import drawing, integrate, start
from attar.methods.sampler.core.distillation import Lesson, Moment, Phase
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance, ready, seen
from attar.methods.sampler.core.training import Batch
from attar.methods.sampler.diffusion import Diffusion
from attar.nets.denoisers import told
from attar.run import Run
from attar.spec import method


@method
class Coupling:
    """Carry noise to data by a teacher's ODE and keep both ends, and states on the way if asked for."""

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {"small": {}}

    count: int = Field(4096, ge=1)  # trajectories
    solver: Solver = "heun"
    steps: int = Field(16, ge=1)
    guidance: TeacherGuidance = TeacherGuidance()
    kept: int = Field(0, ge=0)  # every how many steps a state is kept; 0: the ends alone
    half: bool = False  # keep float16, for large stores
    teaching: Diffusion = Diffusion()  # the form of the exact teacher, where that is given

    def __call__(self, run: Run, *, data: Samples, teacher: GivenTeacher, stream: str = "") -> Couplings:
        """Draw the trajectories, a few hundred at a time; a chunk is a step that survives interruption.

        Two stages draw the same noise, conditions and guidance, unless each names a stream of its own.
        """
        given = GivenTeacher.of(teacher)
        data = seen(data, given)
        guide = ready(run, data, given, self.teaching)
        noise = torch.randn(self.count, *data.shape, generator=run.rng(f"{stream}noise"))
        _, which = data.draw_named(self.count, run.rng(f"{stream}conditions"))
        scale = self.guidance.draw(self.count, run.rng(f"{stream}guidance"))
        scales = scale if isinstance(scale, Tensor) else torch.full((self.count,), scale)
        times = grid_of(guide.process, self.steps)
        kept = list(range(0, self.steps, self.kept)) if self.kept else []
        dtype = torch.float16 if self.half else torch.float32
        ends = run.keep("ends", torch.zeros(self.count, *data.shape, dtype=dtype))
        path = run.keep("path", torch.zeros(self.count, len(kept), *data.shape, dtype=dtype))
        for chunk in run.loop("trajectories", -(-self.count // CHUNK)):
            rows = slice(chunk * CHUNK, min(self.count, (chunk + 1) * CHUNK))
            condition = data.condition(which[rows])
            view = guide.guided(scales[rows].to(run.device) if isinstance(scale, Tensor) else scale)
            x = start(guide.process, times[0], noise[rows].to(run.device))

            def keep(number: int, state: Tensor, rows: slice = rows) -> None:
                if number + 1 in kept:
                    path[rows, kept.index(number + 1)] = state.to(path)

            if kept:
                path[rows, 0] = x.to(path)
            with torch.no_grad():
                x = integrate(
                    view, x, times, None if condition is None else condition.to(run.device),
                    step=SOLVERS[self.solver], draw=drawing(run.rng("solver", chunk)), callback=keep,
                )  # fmt: skip
            ends[rows] = x.to(ends)
        if not kept:
            return Couplings(noise.to(dtype), ends, which, scales)
        return Couplings(noise.to(dtype), ends, which, scales, path=path, times=times[kept])


def chosen_rows(run: Run, pairs: Couplings, total: int, step: int) -> Tensor:
    """Return which of the stored rows a step of `total` samples looks at: this process's part of them."""
    return torch.randint(len(pairs), (total,), generator=run.rng("pairs", step))[run.shard(total)]


def stored(
    lesson: Lesson, pairs: Couplings, total: int, phase: Phase, step: int, *, embedded: bool, drop: float = 0.0
) -> Moment:
    """Return a step about stored pairs: `x0` where noise was led, with its noise, condition and guidance.

    Args:
        lesson: of the method.
        pairs: what is drawn from, with replacement.
        total: samples in the whole batch.
        phase: the phase.
        step: in it.
        embedded: whether the student is told the guidance.
        drop: share of conditions that are dropped.
    """
    run = lesson.run
    mine = chosen_rows(run, pairs, total, step)
    which = pairs.which[mine]
    if drop:
        gone = torch.rand(total, generator=run.rng("drop", step))[run.shard(total)] < drop
        which = torch.where(gone, -1, which)
    condition = lesson.data.condition(which)
    x0, noise, scale = (part[mine].float().to(run.device) for part in (pairs.ends, pairs.noise, pairs.scales))
    batch = Batch(x0, noise, None if condition is None else condition.to(run.device), run.shard(total), total)
    return Moment(run, batch, scale, told(batch.condition, guidance=scale - 1 if embedded else None), step, phase)

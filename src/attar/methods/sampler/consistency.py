"""Consistency: every point of a trajectory is sent to where the trajectory ends (arXiv 2303.01469)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.artifacts.drawing import SOLVERS, Drawing, Multistep, Segmented, Solver
from attar.data import Samples
from attar.diffusion import Denoiser, ddim
from attar.diffusion.consistency import Boundary, Consistent
from attar.diffusion.solvers import Past, Step
from attar.diffusion.view import Condition, View
from attar.diffusion.weights import Weighting, denoising_weight
from attar.losses.denoising import Distance, sample_distance
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Terms
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.times import Pair, Pairs
from attar.methods.sampler.core.training import alike
from attar.run import Run
from attar.spec import method


@dataclass(frozen=True, eq=False)
class Compared:
    """Both sides of a step: the student led from x_t, and the target led from its neighbour x_s."""

    pair: Pair
    guess: Tensor  # with gradient
    goal: Tensor


@method
class Consistency(Distillation):
    """Make neighbours on a teacher's trajectory end alike (Song et al. 2023, arXiv 2303.01469).

    L = E w(t, s) · d(f_θ(x_t, t), sg f_θ⁻(x_s, s)), x_s one solver step of the teacher below x_t (distillation), or the
    same sample with the same noise (training, `neighbour=noise`, no teacher needed). f is x at t = 0. With segments
    both sides are led to the lower edge of their segment by a DDIM jump. θ⁻ is an average of the student, or itself.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {"small": {**Distillation.presets["small"], "pairs": {"intervals": 32}}}

    pairs: Pairs = Pairs()
    neighbour: Literal["solver", "noise"] = "solver"  # of a teacher; or the same noise, which needs none
    solver: Solver = "ddim"
    substeps: int = Field(1, ge=1)  # steps of the solver from x_t to x_s
    eta: float = Field(0.0, ge=0, le=1)  # share of fresh noise in each DDIM step; 0 is the ODE
    boundary: Boundary = "x0"  # how f is made of the network's output
    scaling: float = Field(10.0, gt=0)  # of the boundary lcm
    distance: Distance = "l2"
    constant: float | None = Field(None, gt=0)  # c of the pseudo-Huber distances; none: the papers'
    weight: Literal["none", "interval"] | Weighting = "none"  # interval: 1 / (t − s); others: of t
    target: float | None = Field(0.95, ge=0, lt=1)  # decay of the average that targets are made with; none: itself
    steps: int | None = Field(None, ge=1)  # in which samples are drawn; none: one, or one a segment

    @model_validator(mode="after")
    def _possible(self) -> Consistency:
        if self.eta and self.solver != "ddim":
            raise ValueError(f"eta is the fresh noise of DDIM; with solver={self.solver} leave it 0")
        return self

    @property
    def asks(self) -> bool:
        """Whether a teacher is trained where none is given: where its solver leads."""
        return self.neighbour == "solver"

    @property
    def target_decay(self) -> float | None:
        """The decay of the average that targets are made with."""
        return self.target

    def drawing(self) -> Drawing:
        """Return the consistency sampler, or jumps from segment to segment, at times that were learned."""
        boundary: dict[str, Any] = {"boundary": self.boundary, "scaling": self.scaling, "learned": self.pairs.intervals}
        if self.pairs.segments > 1:
            return Segmented(steps=self.steps or self.pairs.segments, **boundary)
        return Multistep(steps=self.steps or 1, **boundary)

    def begin(self, run: Run, data: Samples, given: GivenTeacher | None, **more: Any) -> Lesson:
        """Return the lesson as it starts; a boundary on another process than its own is refused before any training."""
        if given is None:
            own = Denoiser(lambda x, *_: x, self.teaching.process.build(), self.teaching.predicts)
            Consistent(own, self.boundary, self.scaling)
        lesson = super().begin(run, data, given, **more)
        Consistent(lesson.view, self.boundary, self.scaling)
        if self.target_decay is not None:
            lesson.learner.ema["target"].train()  # it has dropout masks, too: the student's
        return lesson

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the distance between both sides, with what stands beside it."""
        pair = self.pair(lesson, moment)
        x_t = self.state(lesson, moment, pair)
        x_s = self.below(lesson, moment, pair, x_t)
        view, target = lesson.view, lesson.target
        goal, guess = alike(  # the student last: what it saves for its gradient is at hand
            lambda: self.goal(target, x_s, pair, moment.condition),
            lambda: self.led(view, x_t, pair, pair.t, moment.condition),
        )
        distances = self.weights(lesson, pair) * sample_distance(guess, goal, self.distance, self.constant)
        beside = self.beside(lesson, moment, Compared(pair, guess, goal))
        yield {"consistency": moment.batch.mean(distances), **beside}

    def beside(self, lesson: Lesson, moment: Moment, sides: Compared) -> Mapping[str, Tensor]:
        """Return more terms of the student's side: adversarial, reward … (shares of means over the batch)."""
        return {}

    def pair(self, lesson: Lesson, moment: Moment) -> Pair:
        """Return the times of a step, on the grid that the phase asks for."""
        pairs = self.pairs_of(moment)
        found = pairs.draw(
            moment.batch.total, lesson.process, moment.run.rng("pair", moment.step),
            step=moment.step, steps=moment.phase.steps,
        )  # fmt: skip
        mine = moment.batch.mine
        return Pair(mine(found.t), mine(found.s), mine(found.end), found.jumps)

    def pairs_of(self, moment: Moment) -> Pairs:
        """Return the grid of a step: the phase's `pairs` are fields that it changes."""
        return dataclasses.replace(self.pairs, **moment.phase.settings.get("pairs", {}))

    def state(self, lesson: Lesson, moment: Moment, pair: Pair) -> Tensor:
        """Return x_t: a noised sample of the data. Trajectories and samples of the student go here."""
        return lesson.process.diffuse(moment.batch.x0, moment.batch.noise, pair.t).to(moment.batch.x0.dtype)

    @torch.no_grad()
    def below(self, lesson: Lesson, moment: Moment, pair: Pair, x_t: Tensor) -> Tensor:
        """Return x_s: `substeps` of the teacher's solver from x_t, or the same sample and noise at s."""
        if self.neighbour == "noise":
            return lesson.process.diffuse(moment.batch.x0, moment.batch.noise, pair.s).to(x_t.dtype)
        step: Step = functools.partial(ddim, eta=self.eta) if self.eta else SOLVERS[self.solver]
        view, draw, past = self.teacher_of(lesson, moment), moment.drawing("solver"), Past()
        x, t, substeps = x_t, pair.t, moment.phase.settings.get("substeps", self.substeps)
        for number in range(1, substeps + 1):
            s = pair.t + (pair.s - pair.t) * (number / substeps)
            x, t = step(view, x, t, s, moment.batch.condition, draw=draw, past=past), s
        return x

    def led(self, view: View, x: Tensor, pair: Pair, t: Tensor, condition: Condition) -> Tensor:
        """Return x led from t to the pair's end `[n, …]`: f(x, t), or the DDIM jump by f; x where it is there."""
        there = t <= (pair.end if pair.jumps else 0.0)
        safe = t.masked_fill(there, view.process.t_max / 2)  # some networks know no t = 0
        f = Consistent(view, self.boundary, self.scaling)
        made = ddim(f, x, safe, pair.end, condition) if pair.jumps else f.x0(x, safe, condition)
        return torch.where(there.reshape(-1, *[1] * (x.dim() - 1)), x, made)

    @torch.no_grad()
    def goal(self, target: View, x_s: Tensor, pair: Pair, condition: Condition) -> Tensor:
        """Return what the student is held against, without gradient."""
        return self.led(target, x_s, pair, pair.s, condition)

    def weights(self, lesson: Lesson, pair: Pair) -> Tensor:
        """Return the weight of each sample `[n]`."""
        if self.weight == "none":
            return torch.ones_like(pair.t).float()
        if self.weight == "interval":
            return (1 / (pair.t - pair.s)).float()
        return denoising_weight(self.weight, lesson.process, pair.t).float()

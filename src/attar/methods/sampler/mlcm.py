"""MLCM: consistency within segments, on the teacher's own trajectories, then across the segments (arXiv 2406.05768)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.artifacts.drawing import Segmented
from attar.artifacts.sampler import Sampler
from attar.data import Samples
from attar.diffusion import ddim, start
from attar.diffusion.consistency import Boundary
from attar.diffusion.specs import DiscreteProcess
from attar.losses.denoising import Distance
from attar.methods.sampler.consistency import Compared, Consistency
from attar.methods.sampler.core.adversarial import Adversary, Discriminator
from attar.methods.sampler.core.distillation import Lesson, Moment, Phase
from attar.methods.sampler.core.perception import Sight
from attar.methods.sampler.core.reward import GivenReward, Reward, reward_of
from attar.methods.sampler.core.score import FakeScore, ScoreDistillation
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance
from attar.methods.sampler.core.times import Pair, Pairs
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.diffusion import Diffusion
from attar.methods.sampler.lcm import LatentConsistency
from attar.run import AdamW, Drop, Run
from attar.spec import method


@dataclass(eq=False)
class Beside:
    """What the second stage may put beside its own term; none of it where its weight is 0."""

    reward: Reward | None
    fake: FakeScore | None
    discriminator: Discriminator | None
    made: Tensor | None = None  # samples of several steps
    guess: Tensor | None = None  # of one step


@method
class MultistepConsistency(Consistency):
    """Distil one student for 2 to 8 steps without images (Xie et al. 2024, MLCM; later versions are named TLCM).

    First stage: L = ‖g(x_t, t → edge) − sg g(x_s, s → edge)‖², g a DDIM jump to the lower edge of the segment that
    holds t, x_t a state of the teacher's own guided trajectory. Second stage, at the edges alone: x_t is a sample of
    the student noised again, x_s a whole segment of the teacher below it, and both sides are led to clean samples.
    Of the data only conditions are read, unless `states=data`. Samples are drawn with fresh noise between steps, as in
    the released code: behind the second stage plain jumps drift, and so does a student that learns from them.
    """

    version: ClassVar = 3
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "teaching": LatentConsistency.presets["small"]["teaching"],  # whose teacher serves both
            "pairs": {"intervals": 64, "skip": 2},
            "guidance": {"scale": 2.0},
            "train": {
                "steps": 2000,
                "optimizer": {"kind": "adam", "lr": 2e-3},
                "schedule": {"kind": "drop", "at": [0.5], "by": 0.1},
            },
            "across": 0.5,  # a second stage that is cut short is worse than none
        },
        "lora": {"lora": {"rank": 64, "alpha": 64, "layers": "all"}},  # as the paper has it, with the same rate
    }

    teaching: Diffusion = Diffusion(process=DiscreteProcess(betas="scaled-linear"))
    pairs: Pairs = Pairs(intervals=1000, skip=20, segments=8)
    boundary: Boundary = "x0"
    distance: Distance = "l2"  # the paper's latent LPIPS needs a network trained on human judgements
    target: float | None = Field(None, ge=0, lt=1)
    guidance: TeacherGuidance = TeacherGuidance(scale=8.0)  # g of u + g (c − u)
    train: SamplerTraining = SamplerTraining(
        steps=14_000,  # of both stages
        optimizer=AdamW(lr=1e-4),
        schedule=Drop(at=(6 / 7,), by=0.1),
    )
    steps: int | None = Field(4, ge=1)
    gamma: float = Field(1.0, ge=0, le=1)  # share of each jump noised up again; 0, plain jumps, where across=0
    states: Literal["trajectory", "noised", "data"] = "trajectory"  # of the teacher; its samples noised; images noised
    rollout: int = Field(8, ge=1)  # DDIM steps of a whole trajectory; fewer the noisier its state (our number)
    across: float = Field(1 / 7, ge=0, le=1)  # share of the steps for the second stage
    across_steps: int = Field(4, ge=1)  # q: steps of the student's samples there
    across_substeps: int = Field(3, ge=1)  # p: steps of the teacher over a segment there
    preference: float = Field(0.0, ge=0)  # weight of max(threshold − R(c), 0) + max(R(another c), 0), second stage
    threshold: float = 16.0  # s0; of MPS
    score: float = Field(0.0, ge=0)  # weight of score distillation, second stage
    fake: ScoreDistillation = ScoreDistillation()
    adversary: Adversary = Adversary()  # with a weight: one step against several, second stage

    def drawing(self) -> Segmented:
        """Return jumps from edge to edge, noised up again by γ."""
        steps = self.steps or self.pairs.segments
        learned: dict[str, Any] = {"boundary": self.boundary, "scaling": self.scaling, "learned": self.pairs.intervals}
        return Segmented(steps=steps, gamma=self.gamma, **learned)

    def phases(self) -> Sequence[Phase]:
        """Return both stages."""
        across = round(self.across * self.train.steps)
        edges = {"intervals": self.pairs.segments, "segments": 1, "skip": 1}
        second = {"pairs": edges, "substeps": self.across_substeps, "across": True}
        stages = (Phase("segments", self.train.steps - across), Phase("across", across, second))
        return [stage for stage in stages if stage.steps]

    def __call__(
        self, run: Run, *, data: Samples, teacher: GivenTeacher | None = None, reward: GivenReward | None = None
    ) -> Sampler:
        """Train the student; a reward is asked where `preference` has a weight."""
        return self.taught(self.begin(run, data, teacher, reward=reward, sight=Sight.of(data, teacher)))

    def build(self, lesson: Lesson) -> Beside:
        """Return what stands beside the second stage's term."""
        return Beside(
            reward_of(lesson.run, lesson.data, **lesson.given) if self.preference else None,
            self.fake.build(lesson) if self.score else None,
            self.adversary.build(lesson) if self.adversary.weight else None,
        )

    @torch.no_grad()
    def state(self, lesson: Lesson, moment: Moment, pair: Pair) -> Tensor:
        """Return x_t of the teacher's trajectory, or as `states` says; across segments a sample of the student."""
        batch, process = moment.batch, lesson.process
        if moment.phase.settings.get("across"):
            noise, draw = moment.noise("own sample", batch.x0), moment.drawing("jumps")
            made = self.drawing().draw(lesson.view, noise, moment.condition, self.across_steps, draw)
            lesson.state.made = made
            return process.diffuse(made, batch.noise, pair.t).to(made.dtype)
        if self.states == "data":
            return super().state(lesson, moment, pair)
        if self.states == "trajectory":
            return self.rolled(lesson, moment, batch.noise, pair.t)
        ends = self.rolled(lesson, moment, moment.noise("trajectory", batch.x0), torch.zeros_like(pair.t))
        return process.diffuse(ends, batch.noise, pair.t).to(ends.dtype)

    def rolled(self, lesson: Lesson, moment: Moment, noise: Tensor, until: Tensor) -> Tensor:
        """Return where DDIM leads noise `[n, …]` at the times `until` `[n]`, on a grid of `rollout` steps cut there."""
        assert lesson.teacher is not None
        grid = lesson.process.grid(self.rollout).to(noise.device)
        x, at = start(lesson.process, grid[0], noise), grid[0].expand_as(until).clone()
        for level in grid[1:]:
            rows = at > until
            if not bool(rows.any()):
                break
            scale, condition = moment.scale, moment.batch.condition
            view = lesson.teacher.guided(scale[rows] if isinstance(scale, Tensor) else scale)
            s = torch.maximum(level, until)
            x[rows] = ddim(view, x[rows], at[rows], s[rows], None if condition is None else condition[rows])
            at = torch.where(rows, s, at)
        return x

    def beside(self, lesson: Lesson, moment: Moment, sides: Compared) -> Mapping[str, Tensor]:
        """Return preference, score distillation and adversarial terms of one step's samples, second stage."""
        own: Beside = lesson.state
        if not moment.phase.settings.get("across"):
            return {}
        own.guess, terms = sides.guess, {}
        if own.reward is not None:
            asked = moment.batch.condition
            other = asked if asked is None else moment.neighbours(asked)
            fits, misfits = (own.reward.score(sides.guess, condition) for condition in (asked, other))
            hinge = (self.threshold - fits).clamp_min(0) + misfits.clamp_min(0)
            terms["preference"] = self.preference * moment.batch.mean(hinge)
        if own.fake is not None:
            terms["score"] = self.score * own.fake.term(moment, sides.guess, self.teacher_of(lesson, moment))
        if own.discriminator is not None:
            terms["adversarial"] = self.adversary.weight * own.discriminator.term(moment, sides.guess)
        return terms

    def after(self, lesson: Lesson, moment: Moment) -> None:
        """Let the fake score and the discriminator learn; to this one samples of several steps are real."""
        own: Beside = lesson.state
        if own.guess is not None and own.fake is not None:
            own.fake.step(moment, own.guess.detach())
        if own.guess is not None and own.discriminator is not None:
            own.discriminator.step(moment, own.made)
        own.made = own.guess = None

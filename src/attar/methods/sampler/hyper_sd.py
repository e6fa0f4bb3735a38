"""Hyper-SD: consistency on ever longer segments, then feedback, then one step by score distillation (2404.13686)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from attar.artifacts.couplings import Couplings
from attar.artifacts.drawing import Segmented, grid_of
from attar.artifacts.sampler import Sampler
from attar.data import Samples
from attar.diffusion.consistency import Consistent
from attar.diffusion.specs import DiscreteProcess
from attar.losses.denoising import squared
from attar.methods.sampler.consistency import Compared, Consistency
from attar.methods.sampler.core.adversarial import Adversary, Discriminator
from attar.methods.sampler.core.coupling import Coupling, stored
from attar.methods.sampler.core.distillation import Lesson, Moment, Phase, Terms
from attar.methods.sampler.core.perception import Sight
from attar.methods.sampler.core.reward import GivenReward, Reward, reward_of
from attar.methods.sampler.core.rollout import late_sample
from attar.methods.sampler.core.score import FakeScore, ScoreDistillation
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance
from attar.methods.sampler.core.times import Pairs, Times
from attar.methods.sampler.core.training import SamplerTraining, begin_again, trained
from attar.methods.sampler.diffusion import Diffusion
from attar.methods.sampler.lcm import LatentConsistency
from attar.run import AdamW, Run
from attar.spec import method
from attar.train.network import TrainNetwork


@dataclass(eq=False)
class Beside:
    """What stands beside consistency; none where no phase asks for it."""

    discriminator: Discriminator | None
    reward: Reward | None
    fake: FakeScore | None
    pairs: Couplings | None
    anchor: Sampler | None = None  # the student as it entered the one-step phase
    made: Tensor | None = None  # in one step


@method
class SegmentedConsistency(Consistency):
    """Trajectory-segmented consistency distillation, feedback, and a stage for one step (Ren et al. 2024, Hyper-SD).

    For k = 8, 4, 2, 1 segments: L = a ‖Ψ(x_t, t → e) − sg Ψ⁻(x_s, s → e)‖² − b D(Ψ(x_t, t → e)), Ψ a DDIM jump of the
    student and e drawn for each sample between the lower edge of its segment and s; a outweighs b first, b later.
    Feedback: max(0, threshold − R) of a late prediction of a roll-out. One step: distribution matching whose real side
    is the consistency model itself, and square errors to where the teacher leads the same noise. Their loss by the
    segmentation of real images, and feedback in updates of its own that are merged later, are not built.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "teaching": LatentConsistency.presets["small"]["teaching"],  # whose teacher serves both
            "pairs": {"intervals": 32},
            "guidance": {"scale": 2.0},
            "train": {"steps": 700, "batch": 128, "optimizer": {"kind": "adam", "lr": 1e-3}},
            "fooling": (0.0, 0.0, 0.02, 0.02),
            "feedback_steps": 100,
            "one_step_steps": 400,
        },
        "lora": {"lora": {"rank": 64, "alpha": 64, "layers": "all"}},  # as the paper has it; the rank is ours
    }

    teaching: Diffusion = Diffusion(process=DiscreteProcess(betas="scaled-linear"))
    pairs: Pairs = Pairs(intervals=50, random_end=True)  # its segments are those of each phase
    guidance: TeacherGuidance = TeacherGuidance(scale=7.5)  # g of u + g (c − u)
    train: SamplerTraining = SamplerTraining(steps=10_000, batch=512, optimizer=AdamW(lr=1e-6))  # steps of a stage
    segments: tuple[int, ...] = (8, 4, 2, 1)  # a stage each
    closeness: tuple[float, ...] = (1.0, 1.0, 0.1, 0.1)  # a of each stage; ours as b is, the paper says which is larger
    fooling: tuple[float, ...] = (0.1, 0.1, 1.0, 1.0)  # b of each stage; 0 everywhere: no discriminator
    adversary: Adversary = Adversary(times=Times(lowest=0.02, highest=0.2))  # a little noise where e is cleaner
    feedback_steps: int = Field(1000, ge=0)  # 0: no feedback; their number is ours
    judging: TrainNetwork | None = None  # how a classifier learns to reward; none: as the judge of samples does
    threshold: float = 0.0  # of the reward; log p(class) and the like never exceed 0
    one_step_steps: int = Field(5000, ge=0)  # 0: no stage for one step; their number is ours
    real: Literal["consistency", "teacher"] = "consistency"  # side of the gap that stands for the data
    fake: ScoreDistillation = ScoreDistillation()
    paired: float = Field(1.0, ge=0)  # weight of square errors to the teacher's ends, one-step stage
    pleasing: float = Field(0.0, ge=0)  # weight of feedback there
    coupling: Coupling = Coupling()  # how those ends are made, with the guidance of `guidance`
    highest: float | None = Field(None, gt=0)  # time told in one step, of full noise; none: the noisiest; paper: 0.801
    gamma: float = Field(0.3, ge=0, le=1)  # share of each jump noised up again when samples are drawn (TCD)

    @model_validator(mode="after")
    def _stages(self) -> SegmentedConsistency:
        if not len(self.segments) == len(self.closeness) == len(self.fooling):
            counts = f"{len(self.closeness)} of closeness and {len(self.fooling)} of fooling"
            raise ValueError(f"{len(self.segments)} stages need as many weights, got {counts}")
        if self.highest is not None and not self.one_step_steps:
            raise ValueError("highest is the time of the stage for one step; set one_step_steps, or leave it out")
        return self

    def drawing(self) -> Segmented:
        """Return jumps that are noised up again by γ, as TCD samples."""
        steps = self.steps or (1 if self.one_step_steps else 4)
        learned: dict[str, Any] = {"boundary": self.boundary, "scaling": self.scaling, "learned": self.pairs.intervals}
        return Segmented(steps=steps, gamma=self.gamma, highest=self.highest, **learned)

    def phases(self) -> Sequence[Phase]:
        """Return a stage for each number of segments, feedback, and the stage for one step."""
        stages = [
            Phase(f"{n}: {k} segments", self.train.steps, {"pairs": {"segments": k}, "close": a, "fool": b})
            for n, (k, a, b) in enumerate(zip(self.segments, self.closeness, self.fooling, strict=True), 1)
        ]
        more = {"feedback": self.feedback_steps, "one step": self.one_step_steps}
        return [*stages, *(Phase(name, steps, {name: True}) for name, steps in more.items() if steps)]

    def __call__(
        self, run: Run, *, data: Samples, teacher: GivenTeacher | None = None, reward: GivenReward | None = None
    ) -> Sampler:
        """Train the student; the reward, where none is given, is log p(class | picture) of a classifier, a stage."""
        return self.taught(self.begin(run, data, teacher, reward=reward, sight=Sight.of(data, teacher)))

    def build(self, lesson: Lesson) -> Beside:
        """Return what the phases need, with the learners of discriminator and fake score."""
        teacher, last, pairs = lesson.teacher, bool(self.one_step_steps), None
        assert teacher is not None
        grid_of(lesson.process, 1, self.highest)  # refuses a time outside the process before any stage
        if last and self.paired:
            coupling = dataclasses.replace(self.coupling, guidance=self.guidance, teaching=self.teaching)
            given = GivenTeacher(teacher.sampler or "exact")
            pairs = lesson.run.stage("pairs", coupling, data=lesson.data, teacher=given)
        pleased = self.feedback_steps or (last and self.pleasing)
        reward = reward_of(lesson.run, lesson.data, judging=self.judging, **lesson.given) if pleased else None
        discriminator = self.adversary.build(lesson) if any(self.fooling) else None
        return Beside(discriminator, reward, self.fake.build(lesson) if last else None, pairs)

    def enter(self, lesson: Lesson, phase: Phase) -> None:
        """Start from the average of the stage before, with a fresh optimizer; keep it as it is for one step."""
        if phase.name != self.phases()[0].name:
            begin_again(lesson.learner)
        if phase.settings.get("one step"):
            lesson.state.anchor = lesson.student.with_module(trained(lesson.learner)).copy()
            lesson.state.anchor.module.requires_grad_(False).eval()

    def moment(self, lesson: Lesson, phase: Phase, step: int) -> Moment:
        """Draw what a step is about; in the stage for one step stored pairs, where there are some."""
        if (pairs := lesson.state.pairs) is None or not phase.settings.get("one step"):
            return super().moment(lesson, phase, step)
        return stored(lesson, pairs, self.train.batch, phase, step, embedded=self.guidance.embedded)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the terms of the phase."""
        if moment.phase.settings.get("feedback"):
            view, rng = self.consistent(lesson.student), moment.run.rng("late", moment.step)
            made = late_sample(view, moment.batch.noise, moment.condition, rng)
            yield {"feedback": self.displeasure(lesson, moment, made)}
        elif moment.phase.settings.get("one step"):
            yield self.one_step(lesson, moment)
        else:
            for terms in super().terms(lesson, moment):
                yield {**terms, "consistency": moment.phase.settings["close"] * terms["consistency"]}

    def beside(self, lesson: Lesson, moment: Moment, sides: Compared) -> Mapping[str, Tensor]:
        """Return the adversarial term of the jump's end, at its own noise."""
        weight, discriminator = moment.phase.settings["fool"], lesson.state.discriminator
        if not weight or discriminator is None:
            return {}
        return {"adversarial": weight * discriminator.term(moment, sides.guess, sides.pair.end)}

    def after(self, lesson: Lesson, moment: Moment) -> None:
        """Let the discriminator learn, and in the stage for one step the fake score."""
        own: Beside = lesson.state
        if moment.phase.settings.get("fool") and own.discriminator is not None:
            own.discriminator.step(moment)
        if own.made is not None and own.fake is not None:
            own.fake.step(moment, own.made)
        own.made = None

    def one_step(self, lesson: Lesson, moment: Moment) -> Mapping[str, Tensor]:
        """Return the terms of one step's samples: the gap to the anchor's law, and errors to the teacher's ends."""
        own = lesson.state
        made = self.drawing().draw(lesson.view, moment.batch.noise, moment.condition, 1, moment.drawing("again"))
        own.made = made.detach()
        by_teacher = self.real == "teacher"
        real = self.teacher_of(lesson, moment) if by_teacher else self.consistent(own.anchor)
        terms = {"score": own.fake.term(moment, made, real, told=None if by_teacher else moment.condition)}
        if own.pairs is not None:
            terms["paired"] = self.paired * moment.batch.mean(squared(made, moment.batch.x0))
        if self.pleasing:
            terms["feedback"] = self.pleasing * self.displeasure(lesson, moment, made)
        return terms

    def displeasure(self, lesson: Lesson, moment: Moment, made: Tensor) -> Tensor:
        """Return this process's share of the mean of max(0, threshold − R)."""
        scores = lesson.state.reward.score(made, moment.batch.condition)
        return moment.batch.mean((self.threshold - scores).clamp_min(0))

    def consistent(self, sampler: Sampler) -> Consistent:
        """Return a sampler's consistency function."""
        return Consistent(sampler.denoiser, self.boundary, self.scaling)

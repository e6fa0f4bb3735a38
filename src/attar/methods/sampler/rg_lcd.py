"""RG-LCD: consistency distillation that also climbs a reward, directly or through a proxy of it (arXiv 2403.11027)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from attar.artifacts.sampler import Sampler
from attar.data import Samples
from attar.methods.sampler.consistency import Compared
from attar.methods.sampler.core.distillation import Lesson, Moment
from attar.methods.sampler.core.perception import Sight
from attar.methods.sampler.core.proxy_reward import LatentProxy, Proxy
from attar.methods.sampler.core.reward import GivenReward, Reward, reward_of
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance
from attar.methods.sampler.lcm import LatentConsistency
from attar.run import Run
from attar.spec import method
from attar.train.network import TrainNetwork


@dataclass(eq=False)
class Judged:
    """Who rewards the student, and what the proxy is shown behind its step."""

    expert: Reward
    proxy: LatentProxy | None
    shown: tuple[Tensor, ...] = ()


@method
class RewardGuided(LatentConsistency):
    """Latent consistency distillation minus a reward of what one step of the student makes (Li et al. 2024, RG-LCD).

    L = L_LCD − β R(f_θ(x_t, t), c). `direct`: R is the expert itself, whose gradient reaches the student and may teach
    it to please by high frequencies that nobody sees. `proxy`: R is a small network, taught behind each step to rank
    the student's sample, the target and the real sample as the expert does; the expert then needs no gradient.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {
        "small": {**LatentConsistency.presets["small"], "wait": 0.2, "proxy": {"sharpness": 10.0}, "beta": 0.1}
    }

    guidance: TeacherGuidance = TeacherGuidance(scale=6.0, highest=16.0, embedded=True)  # w from 5 to 15
    beta: float = Field(1.0, ge=0)  # weight of the reward; of HPSv2.1 in the paper
    through: Literal["proxy", "direct"] = "proxy"  # what the reward's gradient passes through
    proxy: Proxy = Proxy()
    judging: TrainNetwork | None = None  # how a classifier learns to reward; none: as the judge of samples does
    wait: float = Field(0.0, ge=0, lt=1)  # share of the steps before the reward counts: our proxy begins with nothing

    def __call__(
        self, run: Run, *, data: Samples, teacher: GivenTeacher | None = None, reward: GivenReward | None = None
    ) -> Sampler:
        """Train the student; the reward, where none is given, is log p(class | picture) of a classifier, a stage."""
        return self.taught(self.begin(run, data, teacher, reward=reward, sight=Sight.of(data, teacher)))

    def build(self, lesson: Lesson) -> Judged:
        """Return the expert, and the proxy with its learner."""
        expert = reward_of(lesson.run, lesson.data, judging=self.judging, **lesson.given)
        return Judged(expert, self.proxy.build(lesson, expert) if self.through == "proxy" else None)

    def beside(self, lesson: Lesson, moment: Moment, sides: Compared) -> Mapping[str, Tensor]:
        """Return −β R of the student's samples, and keep both sides for the proxy."""
        judged: Judged = lesson.state
        judged.shown = (sides.guess.detach(), sides.goal, moment.batch.x0)
        if not self.beta or moment.step < self.wait * moment.phase.steps:
            return {}
        by = judged.expert if judged.proxy is None else judged.proxy
        return {"reward": -self.beta * moment.batch.mean(by.score(sides.guess, moment.batch.condition))}

    def after(self, lesson: Lesson, moment: Moment) -> None:
        """Teach the proxy how the expert ranks the student's sample, the target and the real one."""
        judged: Judged = lesson.state
        if judged.proxy is not None:
            judged.proxy.step(moment, judged.shown, real=2)
        judged.shown = ()

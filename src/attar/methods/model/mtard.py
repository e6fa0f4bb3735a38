"""MTARD: a clean and a robust teacher, kept in balance by their entropies and by how fast each is learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.artifacts import Student
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.model.adversarial import AdversarialTraining
from attar.metrics.attacks import Attack, attackable
from attar.nets import CifarResNet, Net, ResNet18
from attar.run import SGD, Drop, Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, StudentTraining, Term
from attar.train.taps import Seen
from attar.train.teacher import Ensemble, Teacher
from attar.train.training import logits_of

HOTTEST = 10.0  # largest temperature of a teacher; the smallest is 1
_TRAIN = StudentTraining(
    epochs=300,
    batch=128,
    optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=2e-4),
    schedule=Drop(at=(215 / 300, 260 / 300, 285 / 300), by=0.1),
)


@method
class BalancedTeachers(Objective):
    """Learn pictures from a clean teacher and attacked ones from a robust one (Zhao et al. 2024, arXiv 2306.16170).

    L = w_a · KL(robust teacher at x' ‖ student at x') + w_n · KL(clean teacher at x ‖ student at x). After every step
    the teacher of less entropy gets hotter and the other cooler; the weights move to the share of the loss that is
    learned more slowly. Labels are for the attack alone. `teacher=CLEAN,ROBUST`; without any, both are trained first.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **Objective.presets["small"],
            "student": {"kind": "convnet", **Objective.presets["small"]["student"]},
            "clean_net": {"kind": "convnet", "depth": 2, "width": 32, "norm": "batch"},
            "robust": AdversarialTraining.presets["small"],
        }
    }

    student: Net = ResNet18(norm="batch")
    train: StudentTraining = _TRAIN
    clean_net: Net = CifarResNet(depth=56)  # of the clean teacher, where none is named
    robust: AdversarialTraining = AdversarialTraining()  # the robust teacher's training; the paper's is a WRN-34-10's
    hard: float = Field(0.0, ge=0)  # weight of the labels for pictures as they are, which the paper does not have
    attack: Attack = Attack()  # on the student, in evaluation mode
    share: float = Field(0.5, ge=0, le=1)  # w_n at the start
    balance: bool = True  # of the losses; else the weights stay
    weight_rate: float = Field(0.025, ge=0, le=1)  # r_w, of the weights; it falls with the learning rate
    heat_rate: float = Field(0.001, ge=0)  # r_τ, of the temperatures, likewise; 0: both stay 1
    robust_sees: Literal["attacked", "clean"] = "attacked"  # clean, with the robust teacher twice: RSLAD
    reduction: Literal["classes", "samples"] = "classes"  # classes: also divided by their number, as the code does

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train the student, and both teachers first where none is named."""
        if teacher is None:
            clean = run.stage("clean teacher", self.teaching.method(self.clean_net), data=data)
            teacher = Teacher.of([clean, run.stage("robust teacher", self.robust, data=data)])
        return super().__call__(run, data=data, teacher=teacher)

    def build(self, setting: Setting) -> nn.Module:
        """Return the teachers, what the balance remembers, and how to attack.

        Raises:
            RecipeError: there are not two teachers.
        """
        if not isinstance(setting.teacher, Ensemble) or len(setting.teacher.members) != 2:
            raise RecipeError("mtard takes two teachers, the clean and the robust one: teacher=CLEAN,ROBUST")
        state: Any = nn.Module()
        state.teachers = [setting.teacher.members]
        state.data, state.rng = setting.data, setting.run.rng
        state.register_buffer("weights", torch.tensor([1 - self.share, self.share]))  # attacked, clean
        state.register_buffer("temperatures", torch.ones(2))
        state.register_buffer("first", torch.zeros(2))  # losses of the first batch
        made: nn.Module = state
        return made

    def views(self, state: Any, batch: Batch, student: nn.Module) -> Batch:
        """Attack the student; it is shown the pictures as they are, and the attacked ones beside them."""
        data = state.data
        with attackable(student, data.normalise) as logits:
            rng = state.rng("attack", batch.step)
            state.attacked = data.normalise(self.attack(logits, data.denormalise(batch.images), batch.labels, rng))
        return dataclasses.replace(batch)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield both teachers' losses, with the weights of this step."""
        clean, robust = state.teachers[0]
        with torch.no_grad():
            shown = state.attacked if self.robust_sees == "attacked" else batch.images
            told = [logits_of(robust, shown), logits_of(clean, batch.images)]
        heated = [logits / heat for logits, heat in zip(told, state.temperatures.tolist(), strict=True)]
        said = [student.of(state.attacked).logits, student.logits]
        scale = 1 / told[0].shape[1] if self.reduction == "classes" else 1.0
        found = [losses.kl_divergence(mine, theirs) * scale for mine, theirs in zip(said, heated, strict=True)]
        slower = self.train.factor(progress.step, progress.steps)
        if self.balance:
            self._weigh(state, torch.stack(found).detach(), self.weight_rate * slower, progress.step == 0)
        for name, loss, weight in zip(("attacked", "clean"), found, state.weights.tolist(), strict=True):
            yield Term(name, loss, weight)
        if self.heat_rate:
            entropies = [negative_entropy(logits) for logits in heated]
            state.temperatures.copy_(balanced_temperatures(state.temperatures, entropies, self.heat_rate * slower))

    @torch.no_grad()
    def _weigh(self, state: Any, found: Tensor, rate: float, first: bool) -> None:
        """Move the weights towards the share that each loss has kept of its first value."""
        if first:
            state.first.copy_(found)
        state.weights.copy_(balanced_weights(state.weights, found / state.first.clamp_min(1e-12), rate))


def negative_entropy(logits: Tensor) -> float:
    """Return the mean over samples and classes of p · log(p + 1e-5), p = softmax(logits): minus entropy by class."""
    p = logits.softmax(-1)
    return float((p * (p + 1e-5).log()).mean())


def balanced_temperatures(temperatures: Tensor, entropies: list[float], rate: float) -> Tensor:
    """Return both temperatures `[2]`, moved by `rate`: that of the teacher of more entropy down, the other's up.

    τ_x ← clip(τ_x − r · sign(E_x / E_other − 1), 1, 10), with E the negative entropies.
    """
    gap = torch.tensor(entropies[1] - entropies[0]).sign()  # above 0: the first has more entropy
    return (temperatures - rate * torch.stack([gap, -gap]).to(temperatures)).clamp(1.0, HOTTEST)


def balanced_weights(weights: Tensor, left: Tensor, rate: float) -> Tensor:
    """Return the weights `[2]` after w ← w − r (w − ℓ / Σ ℓ), at least 0 and with the sum 1.

    ℓ `[2]` is what each loss has kept of its first value, so the slower one gains.
    """
    moved = (weights - rate * (weights - left / left.sum())).clamp_min(0)
    return moved / moved.sum()

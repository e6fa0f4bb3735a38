"""The bench of samplers: every way to few steps from one flow teacher, at equal passes, quality against steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from attar import ledger
from attar.artifacts.drawing import Ode
from attar.claims.claim import Contrast, Trial
from attar.claims.sana_sprint import ERROR
from attar.claims.small_pictures import SmallPicturesClaim
from attar.methods.sampler.core.distillation import Distillation
from attar.run import Cosine, Run
from attar.spec import build

BUDGET = 8_000  # batches through a network, forward and backward, teacher, discriminator and fake score included
UNGUIDED: Mapping[str, Any] = {"scale": 1.0, "highest": None, "embedded": False}
PAIRS = {"count": 4096, "steps": 8}


@dataclass(frozen=True)
class Arm:
    """What an update of a method passes through networks, and its fields here.

    Attributes:
        forward: passes a batch on average, the student's two included.
        backward: passes a batch on average.
        calls: of those, answers of the teacher.
        before: batches that pass before the first update, such as stored pairs take.
        fields: of the method.
    """

    forward: float
    backward: float = 1.0
    calls: float = 1.0
    before: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        """Updates that the budget pays for."""
        return round((BUDGET - self.before) / (self.forward + self.backward))


WARM = {"warmup": 150}
WARMING = 150 / 633  # of rCM's updates warm up, without scores
ARMS: Mapping[str, Arm] = {
    "consistency": Arm(3),
    "progressive": Arm(3, calls=2),
    "hyper-sd": Arm(
        3,
        fields={"guidance": UNGUIDED, "pairs": {"intervals": 32, "random_end": True}, "fooling": (0.0,) * 4,
                "closeness": (1.0,) * 4, "feedback_steps": 0, "one_step_steps": 0, "gamma": 0.0},
    ),
    "rectified-flow": Arm(1, calls=0, before=2 * 4096 * 16 / 128, fields={"coupling": PAIRS}),  # two calls a step
    "meanflow": Arm(4, fields={"slope": "teacher"}),
    "scm": Arm(4, fields=WARM),
    "sana-sprint": Arm(
        9, 3,
        fields={**WARM, "guidance": UNGUIDED,
                "adversary": {"optimizer": {"kind": "adam", "lr": 1e-3, "beta1": 0.0, "beta2": 0.99}}},
    ),
    "dmd": Arm(4, 2, fields={"regression": 0.0, "score": {"optimizer": {"kind": "adam", "lr": 1e-3, "beta1": 0.0}}}),
    "rcm": Arm(
        12 - 8 * WARMING, 3 - 2 * WARMING, calls=2 - WARMING,
        fields={**WARM, "guidance": UNGUIDED, "consistency": 10.0, "derivative": "jvp",
                "fake": {"updates": 1, "optimizer": {"kind": "adam", "lr": 1e-3, "beta1": 0.0}}},
    ),
}  # fmt: skip


class SamplerBench(SmallPicturesClaim):
    """Few-step methods beside each other on Fashion-MNIST at 7 pixels: one flow teacher, as many passes, rates tuned.

    Rates fall in all arms; whether continuous consistency learns a weight of the time is chosen beside them. The arm
    `teacher` is the teacher itself in as few steps, by the best of four solvers. Methods that need another process, a
    reward or no teacher are not here. Adversarial and score terms have their papers' weights, scaled.
    """

    id = "bench-samplers"
    title = "Samplers of few steps"
    says = "nothing: which way to few steps is worth its passes"
    origin = "none"
    primary = Contrast(
        method="consistency", baseline="teacher", metric="frechet_1", at="one step, 8,000 passes of 128 pictures",
        scale="log-ratio", higher_is_better=False, worst=1e4,
    )  # fmt: skip
    secondary = (
        dataclasses.replace(primary, metric="frechet_2", at="two steps"),
        dataclasses.replace(primary, metric="frechet_4", at="four steps"),
        dataclasses.replace(primary, metric="accuracy_1", scale="difference", higher_is_better=True, worst=0.1),
    )
    expects = 0.4
    delta = 0.2
    seeds = 6
    grids: ClassVar = {
        "teacher": {"solver": ["ddim", "heun", "dpmpp-2m", "ancestral"]},
        **{name: {"lr": [1e-4, 3e-4, 1e-3, 3e-3]} for name in ARMS},
        **{name: {"lr": [3e-4, 1e-3], "adaptive": [True, False]} for name in ("scm", "sana-sprint")},
    }
    currency = "passes"
    methods = (*ARMS, "diffusion")
    trial_seeds = 1

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Distil the student of an arm and judge it in 1, 2 and 4 steps."""
        bed = self.bed(run)
        teacher = self.teacher(run, bed)
        if name == "teacher":
            made = teacher.with_module(teacher.module, drawing=Ode(solver=trial["solver"], steps=1))
        else:
            arm = ARMS[name]
            passes = (arm.forward - 2 - arm.calls, arm.backward - 1)
            made = self.student(
                run, self.recipe(name, trial), bed, teacher, seed=seed, calls=arm.calls,
                passes=(max(passes[0], 0.0), passes[1]),
            )  # fmt: skip
            self.meter.add(forward=arm.before * self.batch, teacher_calls=arm.before * self.batch)
        return self.judge(run, bed, made, (1, 2, 4))

    def recipe(self, name: str, trial: Trial) -> Distillation:
        """Return what an arm trains with: its updates are shared by its phases."""
        arm = ARMS[name]
        fields: dict[str, Any] = dict(arm.fields)
        cls = ledger.method_class(name)
        distils = {"distil_steps": 1} if name == "rectified-flow" else {}
        phases = len(build(cls, {**fields, **distils}).phases())
        if "adaptive" in trial:
            fields["adaptive"] = trial["adaptive"]
        if name == "sana-sprint" and not trial.get("adaptive", True):
            fields["adversary"] = {**fields["adversary"], "weight": cls().adversary.weight * ERROR}
        train = self.training(trial, schedule=Cosine())
        if not self.quick:
            train = dataclasses.replace(train, steps=max(1, arm.updates // phases))
        elif name == "rectified-flow":
            fields["coupling"] = {"count": 64, "steps": 2}
        made: Distillation = build(cls, {**fields, **dict.fromkeys(distils, train.steps), "train": train})
        return made

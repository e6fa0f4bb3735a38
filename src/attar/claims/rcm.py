"""The claim of rCM: as sharp as score distillation, and as true to the weights of modes as continuous consistency."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from attar.artifacts.sampler import Sampler
from attar.claims.claim import Contrast, Trial
from attar.claims.samplers import Bed, SamplerClaim, Unlabelled
from attar.data.samples import PointSamples
from attar.diffusion.mixture import Mixture
from attar.diffusion.specs import AnyProcess
from attar.methods.sampler.core.score import ScoreDistillation
from attar.methods.sampler.core.teacher import TeacherGuidance
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.diffusion import Diffusion
from attar.methods.sampler.rcm import SHIFTED, RegularizedConsistency
from attar.metrics.generative import nearest_modes
from attar.nets.denoiser_specs import PointMLP
from attar.run import Adam, Run
from attar.train.generation import Asked, real_points

RING = dataclasses.replace(Mixture.ring(), weights=torch.tensor([8, 6, 5, 4, 3, 2, 1.5, 1], dtype=torch.float64))
SPREAD = math.sqrt(math.pi / 2)  # mean distance of true points to their centre, in deviations of a mode
COUNTED = 100_000  # points, so that the weights of modes are told from chance
UPDATES = 2  # of the fake score for each of the student's; the paper takes 4
ROLLED = 2.5  # predictions of a roll-out, on average
CONSISTENCY, SCORE = (4.0, 1.0), (ROLLED + 2 + UPDATES * (ROLLED + 1), 1.0 + UPDATES)  # forward and backward passes
LONGER = (sum(CONSISTENCY) + sum(SCORE)) / sum(CONSISTENCY)  # updates of sCM that cost as much as one of rCM
SHARP = Contrast(
    method="rcm", baseline="dmd", metric="distance_1", at="one step, 1,000 updates of 256 points", form="not-worse",
    scale="log-ratio", higher_is_better=False, worst=50.0,
)  # fmt: skip
TRUE = dataclasses.replace(SHARP, baseline="scm", metric="weights_1", worst=20.0)


class RegularizedConsistencyClaim(SamplerClaim):
    """rCM against both of its parts on a ring whose eight modes weigh from 8 to 1, told nothing of them.

    `distance` is the mean distance of samples to the next mode's centre, in its deviations (1.25 of true samples, and
    who comes as much too near has as much);
    `weights` is KL from the modes' true weights to those of the samples. All have as many updates of the student; sCM,
    which costs a quarter of them, is also given as many passes. λ counts against √2 numbers here, so it is tuned anew.
    """

    id = "rcm"
    title = "Large Scale Diffusion Distillation via Score-Regularized Continuous-Time Consistency"
    says = "Wan 1.3B, 4 steps: VBench 84.43 with visible diversity, DMD2 84.56; close to the teacher (arXiv 2510.08431)"
    origin = (
        "the card's expectation; a pilot on seed 100 had distances 2.1, 1.9, 3.8 and KL 0.0011, 0.0007, 0.0027 for "
        "λ 0.1, 0.5, 2; score distillation alone, at one pair of rates, had not arrived: 4.6 and 4.1"
    )
    primary = (SHARP, TRUE, dataclasses.replace(TRUE, baseline="scm, equal compute"))
    secondary = (
        dataclasses.replace(TRUE, baseline="dmd"),
        dataclasses.replace(SHARP, baseline="scm"),
        dataclasses.replace(SHARP, baseline="scm, equal compute"),
        dataclasses.replace(SHARP, metric="distance_4", at="four steps"),
        dataclasses.replace(TRUE, metric="weights_4", at="four steps"),
    )
    expects = 0.0
    delta = 0.15
    seeds = 6
    grids: ClassVar = {
        "rcm": {"score": [0.1, 0.5, 2.0], "lr": [3e-4, 1e-3]},
        "dmd": {"fake_lr": [5e-4, 1e-3, 2e-3], "lr": [3e-4, 1e-3]},
        "scm": {"warmup": [0.1, 0.2, 0.4], "lr": [3e-4, 1e-3]},
        "scm, equal compute": {"warmup": [0.1, 0.2, 0.4], "lr": [3e-4, 1e-3]},
    }
    limits: ClassVar = {"warmup": (0.0, 0.9), "lr": (1e-5, 4e-3)}  # at 0.01 continuous consistency breaks on some seeds
    currency = "updates"
    fixed = ("three copies of the teacher",)
    methods = ("rcm", "diffusion")
    trial_seeds = 1
    steps = 1000
    underpowered = "the spread between seeds was not known before; six keep it within twenty minutes"

    def bed(self, run: Run) -> Bed:
        """Return the ring of unequal modes."""
        return Bed(Unlabelled(PointSamples(RING, source="ring")), None)

    def teaching(self, bed: Bed, process: AnyProcess | None = None) -> Diffusion:
        """Return how a teacher is trained, with features of time that are not steep."""
        return dataclasses.replace(super().teaching(bed, process), net=PointMLP(frequency=2.0))

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Distil a student and judge it in 1 and 4 steps."""
        bed = self.bed(run)
        teacher = self.teacher(run, bed)
        # what `student` counts by itself: two predictions, the teacher's answers and one backward pass
        forward, backward = (
            sum(part[place] for part, on in ((CONSISTENCY, name != "dmd"), (SCORE, name in ("rcm", "dmd"))) if on)
            for place in (0, 1)
        )
        calls = float(name != "dmd") + float(name in ("rcm", "dmd"))
        passes = (max(0.0, forward - 2 - calls), backward - 1)
        made = self.student(run, self.recipe(name, trial), bed, teacher, seed=seed, calls=calls, passes=passes)
        return {**self.judge(run, bed, made, (1, 4)), **self.modes(run, bed, made, (1, 4))}

    def recipe(self, name: str, trial: Trial) -> RegularizedConsistency:
        """Return what an arm trains with."""
        train = self.training(trial)
        if name == "scm, equal compute":
            train = dataclasses.replace(train, steps=math.ceil(train.steps * LONGER))
        fields: dict[str, Any] = {"score": trial.get("score", 1.0), "consistency": float(name != "dmd")}
        if name.startswith("scm"):
            fields["score"] = 0.0
        fields["warmup"] = 0 if name == "dmd" else round(trial.get("warmup", 0.2) * train.steps)
        return RegularizedConsistency(
            train=train,
            guidance=TeacherGuidance(),
            derivative="jvp",
            fake=ScoreDistillation(
                times=SHIFTED, fake_times=Times(shift=5.0), updates=UPDATES,
                optimizer=Adam(lr=trial.get("fake_lr", 1e-3), beta1=0.0),
            ),
            **fields,
        )  # fmt: skip

    def modes(self, run: Run, bed: Bed, sampler: Sampler, steps: tuple[int, ...]) -> dict[str, float]:
        """Return `distance_STEPS`, `weights_STEPS`, and `weights_floor`, of as many true points."""
        asked = Asked.of(bed.data, self.samples(bed) if self.quick else COUNTED, run.seed)
        found = {"weights_floor": divergence(real_points(bed.data, asked, "floor"))}
        for count in steps:
            x = asked.draw(sampler, count)
            found |= {f"distance_{count}": distance(x), f"weights_{count}": divergence(x)}
        return found


def distance(x: Tensor) -> float:
    """Return the mean distance of points `[n, 2]` to the next centre, in standard deviations of a mode.

    Points as much too near as others are too far count as these: who collapses is not sharp.
    """
    found = (torch.cdist(x.double().cpu(), RING.means).min(1).values / RING.stds[0]).mean().item()
    return max(found, SPREAD**2 / max(found, 1e-9))


def divergence(x: Tensor) -> float:
    """Return KL from the true weights of modes to those of points `[n, 2]`; half a point is added to each mode."""
    held = torch.bincount(nearest_modes(x.cpu(), RING.means), minlength=len(RING.means)).double() + 0.5
    true, share = RING.weights / RING.weights.sum(), held / held.sum()
    return (true * (true / share).log()).sum().item()

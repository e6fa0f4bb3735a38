"""The claim of AST: strong experts must also be smooth for a student to follow them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from attar.claims.claim import Contrast, Trial
from attar.claims.trajectory import EXPERTS, TrajectoryClaim, pixels
from attar.methods.data.trajectory.segments import Window
from attar.run import SGD, Drop, Run

STRONG = dataclasses.replace(
    EXPERTS,
    count=3 * EXPERTS.count,  # a smooth expert's step costs three plain ones
    optimizer=SGD(lr=3e-3, momentum=0.9, weight_decay=1e-3),
    schedule=Drop(at=(26 / 50,), by=0.6),
)
SMOOTH = dataclasses.replace(STRONG, count=EXPERTS.count, ramp=3, penalty=2.0)  # the paper ramps in 10 of 50 epochs
OPTIONS: dict[str, Any] = {
    "init": "representative",
    "student_momentum": 0.9,
    "balanced": True,
    "intermediate": "equal",
    "perturbation": 1.0,
    "step_size": 0.005,  # momentum 0.9 takes a student four times as far in ten steps
}


class SmoothExpertsClaim(TrajectoryClaim):
    """Smooth experts (loss ramp, gradient penalty) against strong ones of equal compute, at ten images a class.

    Both have momentum and weight decay and learn the step size. The student's options are one bundle, and secondary.
    """

    id = "ast"
    title = "Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories"
    says = "better than MTT and FTD on CIFAR, Tiny-ImageNet and ImageNet subsets (arXiv 2310.10541; no cell confirmed)"
    origin = "the card's estimate: smooth experts are at least as good as plain ones, strong ones are not"
    primary = Contrast(method="smooth", baseline="strong", at="10 images a class, 80 segments of 10 steps", worst=0.1)
    secondary = (Contrast(method="smooth and options", baseline="smooth", at="10 images a class", worst=0.1),)
    expects = 0.015
    delta = 0.0075
    seeds = 10
    grids: ClassVar = {
        "smooth": {"pixel_lr": [20.0, 50.0], "step_size_lr": [1e-6, 1e-5]},
        "strong": {"pixel_lr": [20.0, 50.0], "step_size_lr": [1e-6, 1e-5]},
        "smooth and options": {"pixel_lr": [20.0, 50.0], "step_size_lr": [1e-8, 1e-7]},
    }
    currency = "passes"
    methods = ("ast", "mtt")
    trial_seeds = 1

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Make the arm's set and judge it."""
        splits = self.splits(run)
        fields: dict[str, Any] = {
            "ipc": 10,
            "steps": 80,
            "window": Window(stop=9),
            "expert_epochs": 3,
            "optimizer": pixels(trial["pixel_lr"]),
            "step_size_lr": trial["step_size_lr"],
            "experts": STRONG if name == "strong" else SMOOTH,
        }
        options = OPTIONS if name == "smooth and options" else {}
        made = self.distil(run, self.matching(**fields, **options), splits.train, seed=seed)
        return self.judge(run, splits, made.images, made.labels, {"augment": "none", **trial})

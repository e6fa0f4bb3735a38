"""The claim of talking models, reconstructed: messages in both directions help beyond the teacher's features alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from attar.claims.claim import Contrast, Trial
from attar.claims.vision import VisionClaim
from attar.methods.data.recovery.encoder import turned
from attar.methods.model.talking_models import TalkingModels
from attar.run import Run
from attar.train.objective import Objective

EACH = 30  # labelled images of each class
DRAWS = 3  # of these, averaged in a seed


class TalkingModelsClaim(VisionClaim):
    """Messages against a hint through the same modules, with a teacher that knows rotations and no class.

    The teacher was trained to tell by how many right angles pictures are turned, without their labels; students have
    300 labels. The method is a reconstruction: what the paper's abstract does not say is ours.
    """

    id = "talking-models"
    title = "Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication"
    says = "interactive communication is better than other distillation methods (arXiv 2310.03188, abstract)"
    origin = "the card's estimate of 0.5 to 1.5 points over FitNet; σ of about 1.5 points is a guess"
    primary = Contrast(method="messages", baseline="hint", at="300 labelled images, 300 steps of 64", worst=0.1)
    secondary = (
        Contrast(method="messages", baseline="direct", at="one round against the teacher's own message", worst=0.1),
        Contrast(method="hint", baseline="labels", at="300 labelled images", worst=0.1),
        Contrast(method="messages", baseline="labels", at="300 labelled images", worst=0.1),
    )
    expects = 0.01
    delta = 0.005
    seeds = 12
    grids: ClassVar = {
        "messages": {"weight": [0.1, 0.3, 1.0], "lr": [0.0125, 0.025]},
        "direct": {"weight": [0.3, 1.0, 3.0], "lr": [0.0125, 0.025]},
        "hint": {"weight": [3.0, 30.0, 300.0], "lr": [0.0125, 0.025]},
        "labels": {"weight_decay": [8e-3, 3e-2, 0.12], "lr": [0.0125, 0.025]},
    }
    methods = ("talking-models",)
    trial_seeds = 1
    steps = 300
    underpowered = "twelve seeds have 90 % power for one standard deviation"

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Train students on several draws of labels and return their mean measures."""
        splits = self.splits(run)
        shares = self.shares(run, splits.train)
        quarter = shares.seen.subset(torch.arange(len(shares.seen) // 4))  # each is turned four times
        teacher = self.teacher(run, turned(quarter), name="teacher of rotations")
        each = min(EACH, *(len(members) // 2 for members in shares.seen.by_class))
        found = []
        for draw in range(1 if self.quick else DRAWS):
            data = shares.seen.subset(shares.seen.choose_per_class(each, run.rng("few", draw)))
            made = self.student(run, self.objective(name, trial), data, teacher, seed=seed)
            found.append(self.judge(splits, made))
        return {key: statistics.fmean(one[key] for one in found) for key in found[0]}

    def objective(self, name: str, trial: Trial) -> Objective:
        """Return what an arm trains on."""
        fields: dict[str, Any] = {"student": self.net, "train": self.training(trial)}
        if name == "labels":
            return Objective(**fields)
        forms: dict[str, Any] = {
            "messages": {"rounds": 1},
            "direct": {"rounds": 0},
            "hint": {"form": "hint"},
        }
        return TalkingModels(weight=trial["weight"], **forms[name], **fields)

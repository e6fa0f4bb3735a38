"""The claim of DM: one matched image a class teaches more than one real image a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from attar.claims.claim import Contrast, Trial
from attar.claims.condensation import AUGMENTS, NET, CondensationClaim, mean_images, random_images
from attar.methods.data.dm import DistributionMatching
from attar.run import SGD, Run

RANDOM = Contrast(method="dm", baseline="random", at="1 image a class, 300 steps of 64 real images", worst=0.1)


class DistributionMatchingClaim(CondensationClaim):
    """DM against random real images and the class mean at one image a class, on Fashion-MNIST pooled to 14 pixels."""

    id = "dm"
    title = "Dataset Condensation with Distribution Matching"
    says = "CIFAR-10, one image a class: 26.0 % against 15.4 % for random real images (arXiv 2110.04181, table 1)"
    origin = (
        "pilot without augmentation, one distillation: 55.8 ± 1.3 % random, 68.7 ± 1.0 % DM; that the class mean has "
        "to be beaten, and by how much, was written down after a first verdict, in which it was secondary: 5.2 points"
    )
    primary = (RANDOM, dataclasses.replace(RANDOM, baseline="class mean", expects=0.04, delta=0.02))
    expects = 0.10
    delta = 0.05
    seeds = 8
    grids: ClassVar = {
        "dm": {"pixel_lr": [0.3, 1.0, 3.0], "augment": AUGMENTS},
        "random": {"student_lr": [0.003, 0.01, 0.03], "augment": AUGMENTS},
        "class mean": {"student_lr": [0.003, 0.01, 0.03], "augment": AUGMENTS},
    }
    currency = "stored_bytes"
    fixed = ("the test set", "the training set, but for the validation part in tuning")
    methods = ("dm",)
    uses = ("attar.claims.condensation",)
    steps: ClassVar = 300
    real_batch: ClassVar = 64

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        splits = self.splits(run)
        data = splits.train
        if name == "dm":
            steps = 3 if self.quick else self.steps
            optimizer = SGD(lr=trial["pixel_lr"], momentum=0.5)
            dm = DistributionMatching(ipc=1, steps=steps, real_batch=self.real_batch, net=NET, optimizer=optimizer)
            made = run.stage("distil", dm, seed=seed, data=data)
            passes = steps * data.num_classes
            self.meter.add(updates=steps, forward=passes * (self.real_batch + 1), backward=passes)
            images, labels = made.images, made.labels
        elif name == "random":
            images, labels = random_images(run, data, 1)
        else:
            images, labels = mean_images(data)
        return self.judge(run, splits, images, labels, trial)

"""The claim of DC: one image a class with matched gradients teaches more than one real image a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from attar.claims.claim import Contrast, Trial
from attar.claims.condensation import AUGMENTS, NET, CondensationClaim, mean_images, random_images
from attar.methods.data.dc import GradientMatching
from attar.run import SGD, Run

RANDOM = Contrast(method="dc", baseline="random", at="1 image a class, 150 networks, 64 real images", worst=0.1)


class GradientMatchingClaim(CondensationClaim):
    """DC against random real images and the class mean at one image a class, on Fashion-MNIST pooled to 14 pixels."""

    id = "dc"
    title = "Dataset Condensation with Gradient Matching"
    says = "Fashion-MNIST, one image a class: 70.5 % against 51.4 % for random real images (arXiv 2006.05929, table 1)"
    origin = (
        "pilot, one distillation: 55.8 ± 1.3 % random, 66.8 ± 1.0 % DC; that the class mean has to be "
        "beaten, and by how much, was written down after a first verdict, in which it was secondary: 4.0 points"
    )
    primary = (RANDOM, dataclasses.replace(RANDOM, baseline="class mean", expects=0.04, delta=0.02))
    expects = 0.10
    delta = 0.05
    seeds = 8
    grids: ClassVar = {
        "dc": {"pixel_lr": [0.1, 0.3, 1.0], "augment": AUGMENTS},
        "random": {"student_lr": [0.003, 0.01, 0.03], "augment": AUGMENTS},
        "class mean": {"student_lr": [0.003, 0.01, 0.03], "augment": AUGMENTS},
    }
    currency = "stored_bytes"
    fixed = ("the test set", "the training set, but for the validation part in tuning")
    methods = ("dc",)
    uses = ("attar.claims.condensation",)
    steps: ClassVar = 150
    real_batch: ClassVar = 64

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        splits = self.splits(run)
        data = splits.train
        if name == "dc":
            steps = 3 if self.quick else self.steps
            optimizer = SGD(lr=trial["pixel_lr"], momentum=0.5)
            dc = GradientMatching(ipc=1, steps=steps, real_batch=self.real_batch, net=NET, optimizer=optimizer)
            made = run.stage("distil", dc, seed=seed, data=data)
            passes = steps * data.num_classes * (self.real_batch + 1)
            self.meter.add(updates=steps, forward=passes, backward=passes + steps * data.num_classes)
            images, labels = made.images, made.labels
        elif name == "random":
            images, labels = random_images(run, data, 1)
        else:
            images, labels = mean_images(data)
        return self.judge(run, splits, images, labels, trial)

"""The claim of DSA: augmenting while matching gradients makes images that teach more under augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from attar.claims.claim import Contrast, Trial
from attar.claims.condensation import NET, CondensationClaim
from attar.methods.data.dc import GradientMatching
from attar.methods.data.dsa import SiameseAugmentation
from attar.run import SGD, Run


class SiameseAugmentationClaim(CondensationClaim):
    """DSA against DC at ten images a class: both from real images, equal updates, students augmented alike."""

    id = "dsa"
    title = "Dataset Condensation with Differentiable Siamese Augmentation"
    says = "Fashion-MNIST, ten images a class: 84.6 % against 82.3 % for DC (arXiv 2102.08259, table 1)"
    origin = "the card's estimate: one to three points when students are trained with augmentation"
    primary = Contrast(method="dsa", baseline="dc", at="10 images a class, 20 networks × 10 updates", worst=0.1)
    expects = 0.02
    delta = 0.01
    seeds = 10
    grids: ClassVar = {
        "dsa": {"pixel_lr": [0.03, 0.1, 0.3]},
        "dc": {"pixel_lr": [0.03, 0.1, 0.3]},
    }
    currency = "passes"
    fixed = ("the test set", "the training set, but for the validation part in tuning")
    methods = ("dsa", "dc")
    uses = ("attar.claims.condensation",)
    trial_seeds = 2
    ipc: ClassVar = 10
    networks_matched: ClassVar = 20
    updates: ClassVar = 10
    epochs: ClassVar = 10
    real_batch: ClassVar = 64

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        splits = self.splits(run)
        data = splits.train
        cls = {"dsa": SiameseAugmentation, "dc": GradientMatching}[name]
        steps, updates, epochs = (1, 2, 1) if self.quick else (self.networks_matched, self.updates, self.epochs)
        made = run.stage(
            "distil",
            cls(
                ipc=self.ipc,
                steps=steps,
                updates=updates,
                epochs=epochs,
                real_batch=self.real_batch,
                net=NET,
                init="real",
                optimizer=SGD(lr=trial["pixel_lr"], momentum=0.5),
            ),
            seed=seed,
            data=data,
        )
        count = len(made)
        matched = steps * updates * (data.num_classes * self.real_batch + count)
        trained = steps * (updates - 1) * epochs * count
        self.meter.add(
            updates=steps * updates, forward=matched + trained, backward=matched + trained + steps * updates * count
        )
        return self.judge(run, splits, made.images, made.labels, trial)

"""The claim of PCA: easy images, four in the space of one, teach more at one image a class than either idea alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attar.artifacts import DistilledSet
from attar.claims.claim import Contrast, Trial
from attar.claims.recovery import RecoveryClaim
from attar.data.soft_labels import Views
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.pca import PruneCombineAugment, TileCrops
from attar.nets import ConvNet, Net
from attar.run import SGD, Run
from attar.train.training import Training, batch_loss

IMAGES = 1200  # of a class, that a seed draws: what is scored and chosen from
CHOICE: dict[str, dict[str, Any]] = {
    "pca": {"pool": 0.5, "tiles": 2},
    "easiest": {"pool": None, "tiles": 1},
    "random + combine": {"pool": 1.0, "tiles": 2},
    "random": {"pool": 1.0, "tiles": 1},
}


class PruneCombineAugmentClaim(RecoveryClaim):
    """PCA against the easiest images and against mosaics of random ones; hard labels, crops inside one tile."""

    id = "pca"
    title = "Rethinking Large-scale Dataset Compression: Shifting Focus From Labels to Images"
    says = "ImageNet-1K, 10 images a class, hard labels: 22.8 %, EL2N 12.2 %, RDED 11.5 %, random 4.6 % (2502.06434)"
    origin = "pilot: 44.6 random, 55.6 easiest, 54.0 random + combine, 62.8 easy half + combine, each ± 1 to 2 points"
    primary = (
        Contrast(method="pca", baseline="easiest", at="1 image a class, hard labels, 28 px", worst=0.1),
        Contrast(method="pca", baseline="random + combine", at="1 image a class, hard labels, 28 px", worst=0.1),
    )
    secondary = (
        Contrast(method="pca", baseline="random", at="1 image a class", worst=0.1),
        Contrast(method="pca", baseline="dm", at="1 image a class, 150 steps of DM", worst=0.1),
    )
    expects = 0.07
    delta = 0.035
    seeds = 6
    grids: ClassVar = {
        **{name: {"smallest": [0.6, 1.0], "student_lr": [0.001, 0.003]} for name in CHOICE},
        "dm": {"smallest": [0.6, 1.0], "pixel_lr": [1.0, 3.0]},
    }
    limits: ClassVar = {"smallest": (0.08, 1.0)}
    currency = "stored_bytes"
    fixed = ("the test set",)
    source = "fashion-mnist"
    quick_source = "fashion-mnist-mini"
    methods = ("pca", "dm")
    uses = ("attar.claims.recovery",)
    trial_seeds = 2
    ipc: ClassVar = 1
    net: ClassVar[Net] = ConvNet(depth=3, width=16, norm="batch")
    networks: ClassVar = 3
    student_steps: ClassVar = 300
    student_batch: ClassVar = 100  # ten views of every image, and so all tiles of a mosaic in most steps

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Make the set of an arm and return the accuracy of networks that learn from it."""
        splits = self.splits(run)
        each = min(IMAGES, *map(len, splits.train.by_class))
        data = splits.train.subset(splits.train.choose_per_class(each, run.rng("subset")))
        tiles = 1
        if name == "dm":
            steps = 2 if self.quick else 150
            method = DistributionMatching(
                ipc=1, steps=steps, real_batch=64, net=self.net, optimizer=SGD(lr=trial["pixel_lr"], momentum=0.5)
            )
            made: DistilledSet = run.stage("distil", method, seed=seed, data=data)
            self.meter.add(updates=steps, forward=steps * 65 * 10, backward=steps * 10)
        else:
            scoring = Training(steps=3 if self.quick else 120, batch=100, optimizer=SGD(lr=0.05, momentum=0.9))
            chosen = CHOICE[name]
            select = PruneCombineAugment(ipc=1, scorers=3, scoring=scoring, net=self.net, **chosen)
            made = run.stage("choose", select, seed=seed, data=data)
            tiles = chosen["tiles"]
            if chosen["pool"] != 1.0:
                trained = 3 * scoring.total(len(data)) * 100
                self.meter.add(forward=trained + 3 * len(data), backward=trained)
        self.meter.add(stored_bytes=made.images.numel() * 4 + made.labels.numel() * 8)
        views = Views(scale=(trial["smallest"], 1.0), ratio=(1.0, 1.0))
        key, passes = run.key("views"), self.student_steps * self.student_batch // len(made)
        source = TileCrops(made.images, made.labels, tiles, views=views, key=key, passes=passes)
        return {"accuracy": self.students(run, splits, source, batch_loss, trial)}

"""The claim of PCA: easy images, four in the space of one, teach more at one image a class than either idea alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attar.artifacts import DistilledSet
from attar.claims.claim import Claim, Contrast, Trial
from attar.data.soft_labels import Views
from attar.data.sources import Splits
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.pca import PruneCombineAugment, TileCrops
from attar.nets import ConvNet, Net
from attar.run import SGD, AdamW, Cosine, Plan, Run
from attar.train.evaluation import Protocol, evaluate
from attar.train.training import Training

IMAGES = 1200  # of a class, that a seed draws: what is scored and chosen from
CHOICE: dict[str, dict[str, Any]] = {
    "pca": {"pool": 0.5, "tiles": 2},
    "easiest": {"pool": None, "tiles": 1},
    "random + combine": {"pool": 1.0, "tiles": 2},
    "random": {"pool": 1.0, "tiles": 1},
}


class PruneCombineAugmentClaim(Claim):
    """PCA against the easiest images and against mosaics of random ones; hard labels, views inside one tile.

    Each network of a seed learns from another selection: other draws from the easy half or from all, and the easiest
    image of each class, the second, the third. DM, which is printed, makes one set. Views of chosen images are whole
    tiles, mirrored or not: in a first verdict every arm but DM's preferred them to crops.
    """

    id = "pca"
    title = "Rethinking Large-scale Dataset Compression: Shifting Focus From Labels to Images"
    says = "ImageNet-1K, 10 images a class, hard labels: 22.8 %, EL2N 12.2 %, RDED 11.5 %, random 4.6 % (2502.06434)"
    origin = (
        "pilot: 44.6 random, 55.6 easiest, 54.0 random + combine, 62.8 easy half + combine, each ± 1 to 2 points; "
        "wider grids, three selections a seed and 14 seeds were written down after a first verdict: +0.3 points over "
        "the easiest and +4.6 over random + combine, with spreads of 6.5 and 8.4 points between seeds, one selection "
        "each, which ask 12 and 18 seeds; three selections ask 13, if half of the variance is theirs"
    )
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
    seeds = 14
    grids: ClassVar = {
        **{name: {"student_lr": [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03]} for name in CHOICE},
        "dm": {"smallest": [0.6, 1.0], "pixel_lr": [0.03, 0.1, 0.3]},
    }
    limits: ClassVar = {"smallest": (0.08, 1.0)}
    currency = "stored_bytes"
    fixed = ("the test set",)
    source = "fashion-mnist"
    quick_source = "fashion-mnist-mini"
    methods = ("pca", "dm")
    trial_seeds = 1
    net: ClassVar[Net] = ConvNet(depth=3, width=16, norm="batch")
    networks: ClassVar = 3  # and selections, where images are chosen
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
            select = PruneCombineAugment(ipc=self.networks, scorers=3, scoring=scoring, net=self.net, **chosen)
            made = run.stage("choose", select, seed=seed, data=data)
            tiles = chosen["tiles"]
            if chosen["pool"] != 1.0:
                trained = 3 * scoring.total(len(data)) * 100
                self.meter.add(forward=trained + 3 * len(data), backward=trained)
        return {"accuracy": self.taught(run, splits, made, tiles, trial)}

    def taught(self, run: Run, splits: Splits, made: DistilledSet, tiles: int, trial: Trial) -> float:
        """Return the mean test accuracy of fresh networks, the k-th of which learns from the k-th image of each class.

        What one network learns from counts as stored.
        """
        steps, networks = (3, 1) if self.quick else (self.student_steps, self.networks)
        choices = len(made) // made.num_classes
        views = Views(scale=(trial.get("smallest", 1.0), 1.0), ratio=(1.0, 1.0))
        passes = self.student_steps * self.student_batch // made.num_classes
        shown: dict[str, Any] = {"tiles": tiles, "views": views, "key": run.key("views"), "passes": passes}
        sources = [TileCrops(made.images[k::choices], made.labels[k::choices], **shown) for k in range(choices)]
        optimizer = AdamW(lr=trial.get("student_lr", 0.005), weight_decay=0.01)
        training = Training(steps=steps, batch=self.student_batch, optimizer=optimizer, schedule=Cosine())
        protocol = Protocol(net=self.net, networks=networks, training=training)
        arms = {"set": lambda index: sources[index % choices]}
        seen = networks * steps * self.student_batch
        self.meter.add(
            stored_bytes=(made.images.numel() * 4 + made.labels.numel() * 8) // choices,
            updates=networks * steps,
            examples=seen,
            forward=seen,
            backward=seen,
        )
        row = evaluate(arms, splits.test, protocol, seed=run.seed, plan=Plan(threads=1, workers=1))[0]
        accuracy: float = row["accuracy"]
        return accuracy

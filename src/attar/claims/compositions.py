"""The claim that ideas of several papers together beat each alone, at one image a class and at ten."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from attar.artifacts import DistilledSet
from attar.artifacts.targeted import TargetedSet
from attar.claims.ast import OPTIONS, SMOOTH
from attar.claims.claim import Contrast, Trial
from attar.claims.condensation import NET
from attar.claims.datadam import BATCH_NORM
from attar.claims.datm import ALIGNED, FLAT
from attar.claims.trajectory import TrajectoryClaim, pixels
from attar.data import Images
from attar.data.sources import Splits
from attar.methods.data.datadam import AttentionMatching
from attar.methods.data.dcc import CollectiveMatching
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.dsa import SiameseAugmentation
from attar.methods.data.frepo import FeatureRegression
from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.trajectory.segments import Window
from attar.run import SGD, Adam, Cosine, Plan, Run
from attar.spec import build
from attar.train.evaluation import Protocol, evaluate
from attar.train.training import LossOf, TensorSource, Training, batch_loss

SOFT: dict[str, Any] = {"labels": "learned", "label_optimizer": SGD(lr=2.0, momentum=0.9)}
AVERAGED: dict[str, Any] = {"average_share": 0.1}  # FTD's, with a horizon of a tenth of the run
DATM: dict[str, Any] = {"init": "correct", "threshold": 1.0, "experts": FLAT, **SOFT}

SINGLE: dict[str, dict[str, Any]] = {  # what trajectory matching is changed by; others are made in `method`
    "mtt": {},
    "tesla": {"backward": "tesla"},
    "ftd": {"experts": FLAT, **AVERAGED},
    "ast": {"experts": SMOOTH, "expert_epochs": 3, **OPTIONS},
    "datm": DATM,
}
OTHERS = ("dm", "datadam", "dsa", "dcc", "frepo")
COMPOSED: dict[str, dict[str, Any]] = {
    "mtt + datm's labels": SOFT,
    "mtt + dsa": {"augment": "dsa"},
    "ftd + datm's labels": {**SINGLE["ftd"], **SOFT},
    "mtt + dsa + datm's labels": {"augment": "dsa", **SOFT},
    "datm + ftd's average": {**DATM, **AVERAGED},
    "datm + dsa": {**DATM, "augment": "dsa"},
    "datm + ast's balance": {**DATM, "balanced": True},
    "datm + tesla": {**DATM, "backward": "tesla"},
    "datm + dsa + ast's balance": {**DATM, "augment": "dsa", "balanced": True},
    "datm + dsa + ftd's average + ast's balance": {**DATM, "augment": "dsa", "balanced": True, **AVERAGED},
}
PIXEL_LR = {  # (one image a class, ten), where the claims of each or a pilot found them
    "dm": (3.0, 10.0),
    "datadam": (0.1, 0.3),
    "dsa": (0.3, 0.3),
    "dcc": (3.0, 3.0),
    "frepo": (0.03, 0.03),
    "ast": (50.0, 50.0),
}
EPOCHS = {("none", 1): 300, ("dsa", 1): 1000, ("none", 10): 300, ("dsa", 10): 400}  # of the students, by images a class
RATES = [0.6, 1.8, 5.4]  # times the pixels' learning rate


class CompositionClaim(TrajectoryClaim):
    """The best composition against the best single system: both are chosen on tuning seeds, and meet once.

    The single systems are those whose students read images with one label each, hard or learned. Ten of each side, at
    three learning rates of the pixels, so that both have as many tries (a first verdict, with two rates, found the best
    on their edge and is among the earlier ones); which is best at one image a class and which at ten are two questions.
    Labels that are learned are stored: they count with four bytes a number, and stay within the 5 % that the rule
    allows. Students of images made with augmentation, or by matching gradients or features, see DSA, the others the
    images as they are. 20 minutes on two idle cores, if the experts of the claims of `ftd`, `datm` and `ast` are there.
    """

    id = "compositions"
    title = "Ideas of several papers together beat each system alone"
    says = "no paper alone: MTT, FTD, TESLA, AST and DATM change one thing each about the same algorithm"
    origin = (
        "pilot on seed 100, rates untuned: at one image a class 72.4 % for 'datm + dsa' against 71.8 for the best "
        "single, DATM (MTT 71.6, FTD 71.5, DataDAM 70.3, DM 70.1); at ten 78.0 against MTT 79.0, DM 78.7, DATM 78.5"
    )
    primary = tuple(
        Contrast(
            method=f"composition, {ipc}",
            baseline=f"single, {ipc}",
            at=f"{ipc} image{'s' if ipc > 1 else ''} a class, {steps} segments of 10 steps",
            worst=0.1,
        )
        for ipc, steps in ((1, 120), (10, 80))
    )
    expects = 0.01
    delta = 0.005
    seeds = 10
    grids: ClassVar = {
        f"{side}, {ipc}": {"recipe": list(recipes), "rate": RATES}
        for ipc in (1, 10)
        for side, recipes in (("composition", COMPOSED), ("single", (*SINGLE, *OTHERS)))
    }
    currency = "stored_bytes"
    methods = (*SINGLE, *OTHERS)
    uses: ClassVar[Any] = (
        "attar.claims.ast",
        "attar.claims.condensation",
        "attar.claims.datadam",
        "attar.claims.datm",
        "attar.claims.trajectory",
    )
    trial_seeds = 1

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Make the set of the arm's recipe and judge it."""
        splits, ipc, recipe = self.splits(run), int(name.rpartition(" ")[2]), str(trial["recipe"])
        method = self.method(recipe, ipc, trial["rate"])
        if isinstance(method, TrajectoryMatching):
            made = self.distil(run, method, splits.train, seed=seed)
        else:
            made = run.stage("set", method, seed=seed, data=splits.train)
            self.meter.add(**passes(method, splits.train))
        plain = isinstance(method, TrajectoryMatching) and method.augment == "none"
        return {"accuracy": self.score(run, splits, made, ipc, "none" if plain else "dsa")}

    def method(self, recipe: str, ipc: int, rate: float) -> Any:
        """Return the method of a recipe, with that multiple of its learning rate of the pixels."""
        lr = rate * PIXEL_LR.get(recipe, (100.0, 50.0))[ipc > 1]
        changes = {**SINGLE, **COMPOSED}.get(recipe)
        if changes is not None:
            stop = 4 if ipc == 1 else 9 if recipe == "ast" else 10
            window = ALIGNED[ipc] if recipe.startswith("datm") else Window(stop=stop)
            steps = 120 if ipc == 1 else 80
            return self.matching(**{"ipc": ipc, "steps": steps, "optimizer": pixels(lr), "window": window, **changes})
        shared: dict[str, Any] = {"ipc": ipc, "real_batch": 64, "net": NET, "optimizer": SGD(lr=lr, momentum=0.5)}
        if recipe in ("dm", "datadam"):
            cls = {"dm": DistributionMatching, "datadam": AttentionMatching}[recipe]
            net = NET if recipe == "dm" else BATCH_NORM
            return cls(**{**shared, "net": net, "steps": 3 if self.quick else 300})
        if recipe == "frepo":
            short = {"steps": 3} if self.quick else {}
            return build(FeatureRegression, {"ipc": ipc, "optimizer.lr": lr, **short}, preset="small")
        networks, updates = (2, 2) if self.quick else (150, 1) if ipc == 1 and recipe == "dsa" else (20, 10)
        gradient: dict[str, Any] = {**shared, "steps": networks, "updates": updates, "epochs": 10, "init": "real"}
        return SiameseAugmentation(**gradient) if recipe == "dsa" else CollectiveMatching(**gradient, warmup_share=0.25)

    def score(self, run: Run, splits: Splits, made: DistilledSet, ipc: int, augment: str) -> float:
        """Return the mean test accuracy of fresh networks trained on a set as its labels ask, and count its bytes."""
        labels = made.targets if isinstance(made, TargetedSet) else made.labels
        self.meter.add(stored_bytes=4 * made.images.numel() + labels.element_size() * labels.numel())
        optimizer = SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)
        epochs = 3 if self.quick else EPOCHS[augment, ipc]
        training, net = Training(epochs=epochs, optimizer=optimizer, augment=augment), NET
        loss: LossOf = batch_loss
        if isinstance(made, TargetedSet):  # FRePo's own students: without norm, and they learn numbers
            steps = 3 if self.quick else 1000 * (1 if ipc == 1 else 2)
            schedule = Cosine(warmup=min(100, steps - 1), final=0.01)
            training = Training(steps=steps, optimizer=Adam(lr=1e-3), schedule=schedule)
            net, loss = dataclasses.replace(NET, norm="none"), squared
        protocol = Protocol(net=net, networks=1 if self.quick else self.networks, training=training)
        source, plan = TensorSource(made.images, labels), Plan(threads=1, workers=1)
        arms = {"set": lambda index: source}
        accuracy: float = evaluate(arms, splits.test, protocol, seed=run.seed, plan=plan, loss=loss)[0]["accuracy"]
        return accuracy


def squared(module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of a network's numbers `[n, classes]`."""
    return functional.mse_loss(module(images), targets)


def passes(method: Any, data: Images) -> dict[str, int]:
    """Return updates and passes of a method that matches no trajectories; see the claims of each."""
    count, real = method.ipc * data.num_classes, data.num_classes * method.real_batch
    if isinstance(method, DistributionMatching):
        return {
            "updates": method.steps,
            "forward": method.steps * (real + count),
            "backward": method.steps * count,
        }
    if isinstance(method, FeatureRegression):  # a step reads real images, predicts, and trains one network of the pool
        read = method.steps * (method.real_batch + 2 * count)
        return {"updates": method.steps, "forward": read, "backward": 2 * method.steps * count}
    steps = method.steps * method.updates
    trained = method.steps * (method.updates - 1) * method.epochs * count
    matched = steps * (real + count)
    return {"updates": steps, "forward": matched + trained, "backward": matched + trained + steps * count}

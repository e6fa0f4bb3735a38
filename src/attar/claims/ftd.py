"""The claim of FTD: matching flat trajectories makes images that teach more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch

from attar.claims.claim import Contrast, Precondition, Trial
from attar.claims.condensation import NET
from attar.claims.trajectory import EXPERTS, TrajectoryClaim, pixels
from attar.data import Images
from attar.methods.data.trajectory.experts import ExpertRecipe, Flat, RecordExperts, loss_rise
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.segments import Window
from attar.run import Run

FLAT = {  # at the paper's radius, 0.01, experts of this size are no flatter
    "near": Flat(rho=0.2, alpha=0.3),
    "far": Flat(rho=1.0, alpha=0.3),
    "far, whole share": Flat(rho=1.0, alpha=1.0),
}
TWICE = dataclasses.replace(EXPERTS, count=2 * EXPERTS.count)  # a flat expert's step costs two gradients
FLATTER = Contrast(
    method="ftd",
    baseline="mtt",
    metric="rise",
    at="loss under 5 % weight noise, mean over snapshots",
    scale="log-ratio",
    higher_is_better=False,
    worst=10.0,
)


class FlatTrajectoriesClaim(TrajectoryClaim):
    """FTD against MTT with twice as many experts, which cost as much, at ten images a class.

    The radius that flat experts look round in and their share of the orthogonal part are tuned, and they have to come
    out flatter. The average of the pixels has a horizon of a tenth of the run: the paper's decay would return the first
    images.
    """

    id = "ftd"
    title = "Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation"
    says = "CIFAR-10, ten images a class: 66.6 % against MTT's 65.4 % (arXiv 2211.11004, table 1)"
    origin = (
        "the card's estimate: 0 to 1.5 points; that experts' radius and share are tuned, and that they have to be "
        "flatter, was written down after a first verdict: -0.1 points [-0.2, 0.1], with experts that were flatter by "
        "0.02 [-0.02, 0.07] in log ratio; by its spread of 0.4 points 12 seeds, four of each copy, are more than enough"
    )
    primary = Contrast(method="ftd", baseline="mtt", at="10 images a class, 80 segments of 10 steps", worst=0.1)
    secondary = (Contrast(method="ftd", baseline="ftd without average", at="10 images a class", worst=0.1), FLATTER)
    precondition = Precondition(
        says="flat experts are flatter, by a tenth in log ratio", contrast=FLATTER, at_least=0.1
    )
    expects = 0.0075
    delta = 0.005
    seeds = 12
    grids: ClassVar = {
        "ftd": {"flat": list(FLAT), "pixel_lr": [100.0, 200.0]},
        "mtt": {"pixel_lr": [25.0, 50.0, 100.0, 200.0, 400.0, 800.0]},
        "ftd without average": {"flat": list(FLAT), "pixel_lr": [100.0, 200.0]},
    }
    currency = "passes"
    methods = ("ftd", "mtt")
    trial_seeds = 1

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Make the arm's set and judge it; measure the sharpness of its experts."""
        splits = self.splits(run)
        recipe = TWICE if name == "mtt" else dataclasses.replace(EXPERTS, flat=FLAT[str(trial["flat"])])
        method = self.matching(
            ipc=10,
            steps=80,
            window=Window(stop=10),
            optimizer=pixels(trial["pixel_lr"]),
            experts=recipe,
            average_share=0.1 if name == "ftd" else None,
        )
        made = self.distil(run, method, splits.train, seed=seed)
        metrics = self.judge(run, splits, made.images, made.labels, {"augment": "none", **trial})
        return {**metrics, "rise": self.sharpness(run, recipe, splits.train)}

    def sharpness(self, run: Run, recipe: ExpertRecipe, data: Images) -> float:
        """Return the mean rise of the loss on 1000 images under 5 % relative weight noise, over trained snapshots."""
        if self.quick:
            return 1.0
        experts = run.stage("experts", RecordExperts(net=NET, recipe=recipe), data=data)
        network = FlatNetwork(NET, data)
        images, labels = data.batch(data.choose_per_class(1000 // data.num_classes, run.rng("sharpness")))
        rises = [
            loss_rise(network, weights, images, labels, run.rng("noise", index, epoch))
            for index, path in enumerate(experts.experts)
            for epoch, weights in enumerate(path[1:])
        ]
        return max(1e-6, float(torch.tensor(rises).mean()))

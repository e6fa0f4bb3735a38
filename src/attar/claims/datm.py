"""The claim of DATM: early segments suit few images, late ones many."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from attar.claims.claim import Contrast, Trial
from attar.claims.trajectory import EXPERTS, TrajectoryClaim, pixels
from attar.methods.data.trajectory.experts import Flat
from attar.methods.data.trajectory.segments import Window
from attar.run import SGD, Run

FLAT = dataclasses.replace(EXPERTS, flat=Flat(rho=0.01, alpha=0.3))
WINDOWS = {
    "early": Window(first=0, stop=2),
    "late": Window(first=8, stop=10),
    "uniform": Window(first=0, stop=10),
}
ALIGNED = {
    1: Window(first=0, grow_from=2, stop=4, grow_over=40),
    10: Window(first=4, grow_from=8, stop=10, grow_over=40),
}


class DifficultyAlignedClaim(TrajectoryClaim):
    """What late segments gain over early ones at ten images a class, beyond what they gain at one.

    Every arm takes the pilot's learning rate of the pixels: tuned by a difference of accuracies, an arm would profit
    from a bad set of one image a class.
    """

    id = "datm"
    title = "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching"
    says = "late trajectories help when there are many images and hurt when there are few (arXiv 2310.05773, figure 1)"
    origin = "pilot, one distillation an arm: late against early -14 points at 1 image a class, +4 at 10"
    primary = Contrast(
        method="late",
        baseline="early",
        metric="accuracy_gain_of_more",
        at="accuracy at 10 images a class less that at 1, 80 segments each",
        worst=-0.5,
    )
    secondary = (
        Contrast(method="early", baseline="uniform", metric="accuracy_1", at="1 image a class", worst=0.1),
        Contrast(method="late", baseline="uniform", metric="accuracy_10", at="10 images a class", worst=0.1),
        Contrast(method="datm", baseline="uniform", metric="accuracy_1", at="1 image a class", worst=0.1),
        Contrast(method="datm", baseline="uniform", metric="accuracy_10", at="10 images a class", worst=0.1),
    )
    expects = 0.18
    delta = 0.09
    seeds = 5
    grids: ClassVar = {name: {"pixel_lr": [50.0]} for name in (*WINDOWS, "datm")}
    currency = "passes"
    methods = ("datm", "mtt")

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        splits = self.splits(run)
        found = {}
        for ipc in (1, 10):
            fields: dict[str, Any] = {"ipc": ipc, "steps": 80, "optimizer": pixels(trial["pixel_lr"])}
            if name == "datm":
                soft = {"labels": "learned", "label_optimizer": SGD(lr=2.0, momentum=0.9)}
                fields |= {"window": ALIGNED[ipc], "init": "correct", "threshold": 1.0, "experts": FLAT, **soft}
            else:
                fields["window"] = WINDOWS[name]
            made = self.distil(run, self.matching(**fields), splits.train, seed=seed, name=f"set of {ipc}")
            judged = self.judge(run, splits, made.images, made.labels, {"augment": "none", **trial})
            found[f"accuracy_{ipc}"] = judged["accuracy"]
        return {**found, "accuracy_gain_of_more": found["accuracy_10"] - found["accuracy_1"]}

"""The claim of TESLA: memory that does not grow with the student's steps, at no loss of accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from attar.claims.claim import Contrast, Trial
from attar.claims.condensation import NET
from attar.claims.trajectory import EXPERTS, TrajectoryClaim, pixels
from attar.data import Images
from attar.methods.data.trajectory.experts import RecordExperts
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.matching import Backward, Match, Student, Synthetic, Waypoint, match_segment
from attar.methods.data.trajectory.segments import walk
from attar.metrics.memory import SavedTensors
from attar.nets import ConvNet
from attar.run import Run

TABLE = {(10, 0.01): (0.9998, 0.01), (50, 0.01): (0.991, 0.1), (10, 0.1): (0.970, 0.15), (50, 0.1): (0.854, 0.1)}
"""(steps, step size) to the cosine of TESLA's with the exact gradient that a small ConvNet had, and the tolerance."""


def exactly(metric: str, target: float, delta: float, at: str, worst: float | None = None) -> Contrast:
    """Return the contrast that `metric` of the arm "tesla" is `target` to within `delta`."""
    return Contrast(method="tesla", metric=metric, target=target, delta=delta, at=at, form="exact", worst=worst)


class ConstantMemoryClaim(TrajectoryClaim):
    """TESLA's gradient, its memory, and its accuracy beside that of the exact gradient at one image a class.

    The table of cosines was measured on another network and other images, neither of which is known: tolerances are
    wide, and set on seeds 100 and 101.
    """

    id = "tesla"
    title = "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory"
    says = "CIFAR-10, one image a class: 48.5 % against MTT's 46.3 %, with memory that does not grow (arXiv 2211.10586)"
    origin = "pilot: 64.4 ± 0.5 and 63.6 ± 1.1 % against 64.3 ± 0.6 and 64.8 ± 0.5 % for the exact gradient"
    primary = (
        Contrast(
            method="tesla",
            baseline="exact",
            at="1 image a class, 120 segments of 10 steps",
            form="not-worse",
            worst=0.1,
        ),
        exactly("exact_error", 0.0, 1e-9, "exact against unrolled gradient, float64, 50 steps"),
        exactly("exact_growth", 1.0, 0.01, "saved bytes of the exact gradient, 80 against 10 steps"),
        exactly("tesla_growth", 1.0, 0.01, "saved bytes of TESLA's gradient, 80 against 10 steps"),
        exactly("unroll_growth", 8.0, 0.4, "saved bytes of the unrolled gradient, 80 against 10 steps"),
        *(
            exactly(f"cosine_{steps}_{size:g}", cosine, delta, f"{steps} steps of {size:g}, gradient of the images")
            for (steps, size), (cosine, delta) in TABLE.items()
        ),
    )
    expects = 0.0
    delta = 0.01
    seeds = 13
    grids: ClassVar = {
        "tesla": {"pixel_lr": [10.0, 30.0, 100.0]},
        "exact": {"pixel_lr": [10.0, 30.0, 100.0]},
    }
    currency = "passes"
    methods = ("tesla", "mtt")

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Make the arm's set and judge it; TESLA's arm measures the gradients too."""
        splits = self.splits(run)
        backward: Backward = "tesla" if name == "tesla" else "exact"
        method = self.matching(optimizer=pixels(trial["pixel_lr"]), backward=backward)
        made = self.distil(run, method, splits.train, seed=seed)
        metrics = self.judge(run, splits, made.images, made.labels, {"augment": "none", **trial})
        if name == "exact" or self.phase == "tuning":  # the gradients have nothing to tune
            return metrics
        return {**metrics, **self.gradients(run, splits.train)}

    def gradients(self, run: Run, data: Images) -> dict[str, float]:
        """Return the cosines of the table, the error of the exact gradient, and how saved bytes grow with the steps."""
        if self.quick:
            network = FlatNetwork(ConvNet(depth=1, width=4), data)
            start, target = (network.fresh(run.rng("point", k)).double() for k in range(2))
        else:
            path = run.stage("experts", RecordExperts(net=NET, recipe=EXPERTS), data=data).experts[0]
            network, start, target = FlatNetwork(NET, data), path[0].double(), path[2].double()
        indices = data.choose_per_class(1, run.rng("images of the gradients"))
        synthetic = Synthetic(data.normalised(indices).double(), data.labels[indices])

        def match(mode: Backward, steps: int, size: float) -> Match:
            student = Student(network, torch.tensor(size, dtype=torch.float64))
            order: dict[str, Any] = {"order": 0, "rng": torch.Generator()}
            batches = walk(len(indices), None, steps, "none", synthetic.images.shape[1:], **order)
            return match_segment(student, start, [Waypoint(steps, target)], batches, synthetic, mode=mode)

        def saved(mode: Backward, steps: int) -> int:
            with SavedTensors() as meter:
                match(mode, steps, 0.01)
            return meter.peak

        modes: tuple[Backward, ...] = ("exact", "tesla", "unroll")
        found = {f"{mode}_growth": saved(mode, 80) / saved(mode, 10) for mode in modes}
        exact, unrolled = (match(mode, 50, 0.01).images for mode in ("exact", "unroll"))
        found["exact_error"] = float((exact - unrolled).norm() / unrolled.norm())
        for steps, size in TABLE:
            pair = (match(mode, steps, size).images for mode in ("tesla", "exact"))
            found[f"cosine_{steps}_{size:g}"] = cosine(*pair)
        return found


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two gradients as vectors."""
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))

"""The claim of the constant-memory gradient: exact, and no dearer in memory than TESLA's, which leaves a term out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attar.claims.claim import Claim, Contrast, Trial
from attar.claims.condensation import NET
from attar.data import Images
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.matching import Backward, Match, Student, Synthetic, Waypoint, match_segment
from attar.methods.data.trajectory.segments import walk
from attar.metrics.memory import SavedTensors
from attar.nets import ConvNet, Net
from attar.run import Run

SMALL = ConvNet(depth=1, width=8)
TABLE = {(10, 0.01): (0.9998, 0.003), (50, 0.01): (0.991, 0.01), (10, 0.1): (0.970, 0.02), (50, 0.1): (0.854, 0.1)}
"""(steps, step size) to the cosine that the card found for a small ConvNet, and the tolerance here."""
STEPS = (1, 2, 5, 10, 20, 50)  # of a student whose exact gradient is held against the unrolled one
DRAWS = 16  # networks, with images of their own, that a cosine is the mean of


def exactly(metric: str, target: float, delta: float, at: str) -> Contrast:
    """Return the contrast that `metric` is `target` to within `delta`."""
    return Contrast(method="gradients", metric=metric, target=target, delta=delta, at=at, form="exact")


def cosines(prefix: str, network: str) -> tuple[Contrast, ...]:
    """Return a contrast for each cosine of the table."""
    return tuple(
        exactly(f"{prefix}_{steps}_{size:g}", cosine, delta, f"{steps} steps of {size:g}, {network}")
        for (steps, size), (cosine, delta) in TABLE.items()
    )


@dataclass(frozen=True)
class Segment:
    """A student's segment in float64: from one drawn parameter vector towards another, on ten images."""

    network: FlatNetwork
    start: Tensor
    target: Tensor
    synthetic: Synthetic

    def match(self, mode: Backward, steps: int, size: float, *, momentum: float = 0.0) -> Match:
        """Return loss and gradients; with momentum the point half-way is matched as well."""
        student = Student(self.network, torch.tensor(size, dtype=torch.float64), momentum)
        halfway = [Waypoint(steps // 2, self.target, 0.5)] if momentum and steps > 1 else []
        images = self.synthetic.images
        batches = walk(len(images), None, steps, "none", images.shape[1:], order=0, rng=torch.Generator())
        return match_segment(
            student, self.start, [*halfway, Waypoint(steps, self.target)], batches, self.synthetic, mode=mode
        )


class ConstantMemoryGradientClaim(Claim):
    """The two-pass gradient is that of full unrolling, in memory that does not grow with the student's steps.

    Errors and memory are measured on F14's network with one real image a class; the cosines of TESLA's gradient with
    the exact one on a ConvNet of one block of width 8, drawn anew, whose target lies a standard normal step away. The
    card does not say which small network it took: of two dozen settings tried on seeds 100-115 this one's table lay
    nearest the card's, so that cosines are secondary. On F14's own network they are lower, and so they are on experts
    (the claim of `tesla`). Graphs are what autograd holds, and those of the last ten steps are kept; the points of the
    path, a vector a step, come on top: `exact_with_path` is the growth with them. A minute on two idle cores.
    """

    id = "constant-memory"
    title = "The exact gradient of trajectory matching at constant memory"
    says = "no paper alone: TESLA (2211.10586) has constant memory and drops a term, MTT (2203.11932) unrolls exactly"
    origin = "card: error 1e-16 up to 50 steps, cosines as in the table; pilot, seeds 100-109: 0.9983 0.984 0.971 0.898"
    primary = (
        exactly("exact_error", 0.0, 1e-9, "exact against unrolled gradient, float64, 1 to 50 steps"),
        exactly("exact_growth", 1.0, 0.01, "bytes of graphs of the exact gradient, 80 against 20 steps"),
        exactly("tesla_growth", 1.0, 0.01, "bytes of graphs of TESLA's gradient, 80 against 20 steps"),
        exactly("unroll_growth", 4.0, 0.2, "bytes of graphs of the unrolled gradient, 80 against 20 steps"),
        exactly("unroll_midway", 2.0, 0.1, "bytes of graphs of the unrolled gradient, 40 against 20 steps"),
    )
    secondary = (
        *cosines("cosine", f"mean of {DRAWS} small networks"),
        *cosines("f14_cosine", "F14's network"),
    )
    expects = 0.0
    delta = 1e-9
    grids: ClassVar = {"gradients": {}}
    currency = "passes"
    fixed = ("the images that the errors are measured on come from one training set",)
    methods = ("mtt", "tesla")
    uses = ("attar.claims.condensation",)
    tuning_seeds = (100,)
    trial_seeds = 1

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Return errors, growth of saved bytes, and cosines."""
        data = self.splits(run).train
        hard = self.segment(run, ConvNet(depth=1, width=4) if self.quick else NET, data, "F14's network")
        soft = replace(
            hard, synthetic=Synthetic(hard.synthetic.images, logits(run, data.num_classes)[hard.synthetic.labels])
        )
        lengths = STEPS[:3] if self.quick else STEPS
        found = {"exact_error": max(error(soft, steps, momentum) for steps in lengths for momentum in (0.0, 0.9))}
        modes: tuple[Backward, ...] = ("exact", "tesla", "unroll")
        for mode in modes:
            few, many = (saved_bytes(hard, mode, steps) for steps in (20, 80))
            found[f"{mode}_growth"] = many / few
            if mode == "unroll":
                found["unroll_midway"] = saved_bytes(hard, mode, 40) / few
            else:
                point = hard.start.numel() * hard.start.element_size()
                found[f"{mode}_with_path"] = (many + 81 * point) / (few + 21 * point)
        small = [self.segment(run, SMALL, data, f"small network {draw}") for draw in range(1 if self.quick else DRAWS)]
        for steps, size in TABLE:
            found[f"cosine_{steps}_{size:g}"] = statistics.fmean(cosine(some, steps, size) for some in small)
            found[f"f14_cosine_{steps}_{size:g}"] = cosine(hard, steps, size)
        return found

    def segment(self, run: Run, net: Net, data: Images, name: str) -> Segment:
        """Return a segment from a freshly drawn point to one beside it, on one real image a class."""
        network = FlatNetwork(net, data)
        start = network.fresh(run.rng(f"start of {name}")).double()
        beside = torch.randn(start.shape, generator=run.rng(f"target of {name}"), dtype=torch.float64)
        indices = data.choose_per_class(1, run.rng(f"images of {name}"))[: 2 if self.quick else None]
        synthetic = Synthetic(data.normalised(indices).double(), data.labels[indices])
        return Segment(network, start, start + beside, synthetic)


def logits(run: Run, classes: int) -> Tensor:
    """Return soft labels of one image a class: random logits, higher at the image's own class."""
    drawn = torch.randn(classes, classes, generator=run.rng("soft labels"), dtype=torch.float64)
    return drawn + 4 * torch.eye(classes, dtype=torch.float64)


def error(segment: Segment, steps: int, momentum: float) -> float:
    """Return the largest relative error of the exact gradient: of images, labels and the step size."""
    found, wanted = (segment.match(mode, steps, 0.05, momentum=momentum) for mode in ("exact", "unroll"))
    pairs = [(found.images, wanted.images), (found.step_size, wanted.step_size)]
    if found.labels is not None and wanted.labels is not None:
        pairs.append((found.labels, wanted.labels))
    return max(float((ours - other).norm() / other.norm()) for ours, other in pairs)


def saved_bytes(segment: Segment, mode: Backward, steps: int) -> int:
    """Return the most bytes that autograd had saved at one time."""
    with SavedTensors() as meter:
        segment.match(mode, steps, 0.01)
    return meter.peak


def cosine(segment: Segment, steps: int, size: float) -> float:
    """Return the cosine of TESLA's gradient of the images with the exact one."""
    ours, exact = (segment.match(mode, steps, size).images.flatten() for mode in ("tesla", "exact"))
    return float(torch.cosine_similarity(ours, exact, dim=0))

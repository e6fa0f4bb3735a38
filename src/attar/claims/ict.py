"""The claim of iCT: its schedule, intervals, weights and distance, and no average, make consistency training better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from attar.claims.claim import Contrast, Trial
from attar.claims.samplers import Bed, SamplerClaim, Unlabelled
from attar.diffusion.specs import EdmProcess
from attar.methods.sampler.core.distillation import Lesson, Moment
from attar.methods.sampler.core.times import Pair, Pairs
from attar.methods.sampler.diffusion import Diffusion
from attar.methods.sampler.ict import ImprovedConsistencyTraining
from attar.nets.denoiser_specs import PointMLP
from attar.run import Decay, RAdam, Run
from attar.spec import method

SPREAD = 1.15  # standard deviation of the checkerboard
UNIT = SPREAD / 0.5  # the paper's numbers are for data of 0.5
AT = "one step, 5,000 updates of 256 points"


@method
class OriginalTraining(ImprovedConsistencyTraining):
    """Consistency training as it was at first (2303.01469): √ schedule, even intervals, squared error, an average.

    N(k) = ⌈√(k/K ((s1 + 1)² − s0²) + s0²) − 1⌉ + 1 levels, and μ(k) = exp(s0 ln μ0 / N(k)) decays the average.
    """

    version: ClassVar = 1
    first_levels: int = 2  # s0
    last_levels: int = 150  # s1
    first_decay: float = 0.9  # μ0

    def levels(self, moment: Moment) -> int:
        """Return N(k)."""
        low, high = self.first_levels**2, (self.last_levels + 1) ** 2
        return math.ceil(math.sqrt(moment.step / moment.phase.steps * (high - low) + low) - 1) + 1

    def pairs_of(self, moment: Moment) -> Pairs:
        """Return the grid of a step: even chances of N(k) − 1 intervals."""
        return dataclasses.replace(self.pairs, intervals=self.levels(moment) - 1, first=None)

    def pair(self, lesson: Lesson, moment: Moment) -> Pair:
        """Return the times of a step, and let the average move as fast as their number wants."""
        decay = math.exp(self.first_levels * math.log(self.first_decay) / self.levels(moment))
        lesson.learner.decays["target"] = Decay(decay=decay)
        return super().pair(lesson, moment)


CHANGES: Mapping[str, dict[str, Any]] = {
    "ict": {},
    "ict, squared error": {"distance": "l2"},
    "ict, even intervals": {"chosen": "uniform"},
    "ct": {"distance": "l2", "weight": "none", "chosen": "uniform", "target": 0.9},
}


class ImprovedConsistencyTrainingClaim(SamplerClaim):
    """iCT against consistency training as it was at first, on the unlabelled checkerboard, with no teacher anywhere.

    All arms have one network, optimizer and budget, and tune the number of intervals that they end with: with the
    paper's 150, consistency training does not arrive in 5,000 updates. The paper's numbers in units of σ are stretched
    with the data's spread. Distance and chances are also exchanged alone.
    """

    id = "ict"
    title = "Improved Techniques for Training Consistency Models"
    says = "CIFAR-10, one step: FID 2.83 where consistency training had 8.70; 3.5 × better (arXiv 2310.14189, table 2)"
    origin = (
        "the card's 20 to 50 % lower distance; a pilot of 1,500 updates on seed 100: 0.19 against 1.12 at one rate; "
        "that the number of intervals is tuned was written down after a first verdict, 0.11 against 1.08, where a "
        "pilot with 20 intervals had 0.25"
    )
    primary = Contrast(
        method="ict", baseline="ct", metric="sliced_wasserstein_1", at=AT, scale="log-ratio", higher_is_better=False,
        worst=2.0,
    )  # fmt: skip
    secondary = (
        dataclasses.replace(primary, metric="sliced_wasserstein_2", at="two steps"),
        dataclasses.replace(primary, baseline="ict, squared error"),
        dataclasses.replace(primary, baseline="ict, even intervals"),
    )
    expects = 0.6
    delta = 0.3
    seeds = 10
    grids: ClassVar = {
        arm: {"lr": [5e-4, 1e-3], "intervals": [10, 20, 40] if arm == "ct" else [40, 80, 160]} for arm in CHANGES
    }
    limits: ClassVar = {"intervals": (4, 1280)}
    currency = "updates"
    fixed: ClassVar = ("nothing: points are drawn without end",)
    source = "checkerboard"
    quick_source = "checkerboard"
    methods = ("ict",)
    trial_seeds = 2
    copies = 1  # there is no teacher to deal out
    steps = 5000

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Train and judge a student."""
        bed = Bed(Unlabelled(self.bed(run).data), None)
        made = self.student(run, self.recipe(name, trial), bed, None, seed=seed)
        return self.judge(run, bed, made, (1, 2))

    def recipe(self, name: str, trial: Trial) -> ImprovedConsistencyTraining:
        """Return what an arm trains with."""
        fields, intervals = dict(CHANGES[name]), trial["intervals"]
        pairs = Pairs(
            intervals=intervals,
            first=min(10, intervals),
            chosen=fields.pop("chosen", "log-normal"),
            mean=-1.1 + math.log(UNIT),
            ends_at="first-level",
        )
        process = EdmProcess(sigma_max=80 * UNIT, sigma_min=0.002 * UNIT, sigma_data=SPREAD)
        cls = ImprovedConsistencyTraining
        if name == "ct":
            cls, fields["last_levels"] = OriginalTraining, intervals
        return cls(
            teaching=Diffusion(net=PointMLP(frequency=1.0), process=process),
            train=self.training(trial, optimizer=RAdam(lr=trial["lr"]), clip=None),
            pairs=pairs,
            constant=None if fields.get("distance") == "l2" else 0.00054 * math.sqrt(2) * UNIT,
            times=(0.821 * UNIT,),
            **fields,
        )

"""The claim of DWA: a teacher moved away from a batch's start makes images that teach more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from attar.claims.claim import Contrast, Trial
from attar.claims.recovery import RecoveryClaim
from attar.methods.data.dwa import DirectedAdjustment
from attar.methods.data.recovery.recover import Adjustment
from attar.run import Adam, Run

ADJUSTMENTS = 12  # K, the paper's
WEIGHTS = [0.1, 0.2, 0.3, 0.6, 1.0, 2.0, 4.0, 11.0, 30.0]  # of variances, DWA's among them: as many trials as it has


class DirectedAdjustmentClaim(RecoveryClaim):
    """DWA against the same from the same real images without weight adjustment, the variances' weight tuned in both.

    The claims review asks for twenty classes, Fashion-MNIST with digits; their 360 test images would decide half of
    the accuracy, so ten classes with all 10,000 test images it is. The paper's rival, SRe2L from noise, is printed.
    """

    id = "dwa"
    title = "Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment"
    says = "CIFAR-100, 50 images a class: 60.9 % against 52.2 % for SRe2L from noise (arXiv 2409.17612, table 1)"
    origin = (
        "pilot: 77.0 % against 77.3 % from real images alone and 75.2 % from noise; a tie is likely; that DWA tunes "
        "the variances' weight, too, was written down after a first verdict: -0.3 points [-0.5, -0.1] against real "
        "images alone, in which it kept the paper's 11 and its rivals took 0.3"
    )
    primary = Contrast(method="dwa", baseline="real start", at="10 images a class, 150 steps", worst=0.1)
    secondary = (Contrast(method="dwa", baseline="noise start", at="10 images a class, the paper's rival", worst=0.1),)
    expects = 0.01
    delta = 0.005
    seeds = 10
    grids: ClassVar = {
        "dwa": {"radius": [0.003, 0.01, 0.03], "variance_weight": [0.3, 1.0, 11.0]},
        "real start": {"variance_weight": WEIGHTS},
        "noise start": {"variance_weight": WEIGHTS},
    }
    currency = "updates"
    fixed = ("the test set", "the training set, but for the validation part in tuning", "three copies of the teacher")
    methods = ("dwa", "sre2l")
    uses = ("attar.claims.recovery",)
    trial_seeds = 2
    copies = 3
    underpowered = (
        "the expected effect is about one standard deviation; ten seeds bound it from above, which decides it"
    )

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Make the set of an arm and return the accuracy of networks that learn from it."""
        splits = self.splits(run)
        teacher = self.teacher(run, splits.train)
        directed = name == "dwa"
        adjustment = Adjustment(steps=ADJUSTMENTS, radius=trial["radius"], relative=True) if directed else None
        method = DirectedAdjustment(
            ipc=self.ipc,
            steps=self.steps,
            optimizer=Adam(lr=0.1, beta1=0.5, beta2=0.9),
            alpha=0.05,
            jitter=0,
            crops=None,
            init="noise" if name == "noise start" else "real",
            adjustment=adjustment,
            variance_weight=trial["variance_weight"],
            net=self.net,
        )
        made = run.stage("recover", method, seed=seed, data=splits.train, teacher=teacher)
        self.count_recovery(len(made), extra=ADJUSTMENTS if directed else 0)
        return {"accuracy": self.judge(run, splits, made, [teacher], trial)}

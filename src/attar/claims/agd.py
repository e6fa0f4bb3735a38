"""The claim of AGD: adapters learn guidance better on the guided teacher's own trajectories than on noised data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attar.artifacts.adapted import AdaptedSampler
from attar.claims.claim import Contrast, Trial
from attar.claims.guided import GuidedClaim
from attar.methods.sampler.agd import AdapterGuidance
from attar.methods.sampler.core.coupling import Coupling
from attar.methods.sampler.core.teacher import TeacherGuidance
from attar.methods.sampler.guided_distillation import GuidedDistillation
from attar.nets.adapter_specs import GuidanceAdapters
from attar.nets.denoiser_specs import PointMLP
from attar.run import AdamW, Cosine, Run

STEPS, TRAJECTORIES = 64, 1024  # of the guided ODE; stored
AT = "64 DDIM steps of one evaluation, w = 3 and 5, 3,000 updates"
TOLD = TeacherGuidance(scale=1.0, highest=6.0, embedded=True)


class AdapterGuidanceClaim(GuidedClaim):
    """AGD on trajectories against AGD on noised data and against training all weights, by the error to guidance.

    The first two arms see as many distinct states and train adapters of under 5 % of the network's parameters;
    the third is stage 1 of guided distillation on a copy. All end in as many updates; the teacher answers
    each example of the latter two, and once for each stored state of the first.
    """

    id = "agd"
    title = "Efficient Distillation of Classifier-Free Guidance using Adapters"
    says = (
        "DiT-XL/2, SD 2.1, SDXL: FID of guidance or better at half the evaluations, 1 to 5 % trained (arXiv 2503.07274)"
    )
    origin = "the card: better than noised data, most at strong guidance, and within 20 % of training all weights"
    primary = (
        Contrast(
            method="trajectories", baseline="noised data", metric="endpoint_error", at=AT, scale="log-ratio",
            higher_is_better=False, worst=4.0,
        ),
        Contrast(
            method="trajectories", baseline="all weights", metric="endpoint_error", at=AT, scale="log-ratio",
            higher_is_better=False, worst=4.0, form="not-worse", expects=0.0, delta=math.log(1.2),
        ),
    )  # fmt: skip
    expects = 0.3
    delta = 0.15
    seeds = 6
    grids: ClassVar = {
        "trajectories": {"lr": [1e-3, 3e-3, 1e-2], "form": ["offset", "attention"]},
        "noised data": {"lr": [1e-3, 3e-3, 1e-2], "form": ["offset", "attention"]},
        "all weights": {"lr": [1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3]},
    }
    currency = "teacher_calls"
    methods = ("agd", "guided-distillation", "diffusion")
    trial_seeds = 1
    guidance = (4.0, 6.0)
    net = PointMLP(width=256)
    underpowered = "the spread between seeds was not measured before"

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Train a student and hold it against the guided teacher."""
        bed = self.bed(run)
        teacher = self.teacher(run, bed)
        train = self.training(trial, optimizer=AdamW(lr=trial["lr"], weight_decay=0.0), schedule=Cosine(final=1e-4))
        steps = 4 if self.quick else STEPS
        method: Any = AdapterGuidance(
            train=train,
            guidance=TOLD,
            adapters=adapters_of(trial.get("form", "offset")),
            states="data" if name == "noised data" else "trajectories",
            trajectories=Coupling(count=8 if self.quick else TRAJECTORIES, solver="ddim", steps=steps, kept=1),
            steps=steps,
        )
        if name == "all weights":
            method = GuidedDistillation(
                train=train, guidance=TOLD, guidance_steps=train.steps, teacher_steps=steps, steps=steps
            )
        made = self.student(run, method, bed, teacher, seed=seed, calls=0 if name == "trajectories" else 2)
        if name == "trajectories":
            self.meter.add(teacher_calls=2 * steps * method.trajectories.count)
        return self.errors(run, bed, teacher, made, steps=steps) | {"trained_share": share(made)}


def adapters_of(form: Literal["offset", "attention"]) -> GuidanceAdapters:
    """Return adapters that take under 5 % of the network's parameters, of either form."""
    return GuidanceAdapters(form=form, hidden=8 if form == "offset" else 6)


def share(made: Any) -> float:
    """Return the parameters that were trained, as a share of those of the network without adapters."""
    whole = sum(parameter.numel() for parameter in made.module.parameters())
    if not isinstance(made, AdaptedSampler):
        return 1.0
    own = sum(tensor.numel() for tensor in made.module.state_dict().values())
    return own / (whole - own)

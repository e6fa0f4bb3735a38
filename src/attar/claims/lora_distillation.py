"""The claim of LoRA distillation: guidance fits into low-rank updates, at half the memory of two networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from attar.artifacts.adapted import AdaptedSampler
from attar.artifacts.sampler import Sampler
from attar.claims.claim import Contrast, Trial
from attar.claims.guided import GuidedClaim
from attar.methods.sampler.core.teacher import TeacherGuidance
from attar.methods.sampler.lora_distillation import LoRADistillation
from attar.nets.adapter_specs import LoRA
from attar.run import AdamW, Run

RANK, STEPS = 8, 32
AT = "w = 2, 3,000 updates, 32 DDIM steps of one evaluation"


class LoRADistillationClaim(GuidedClaim):
    """Low-rank updates of the frozen teacher against training all weights of a copy beside it, for one strength.

    Bytes are those of parameters, gradients and Adam's two averages, counted; they do not depend on the seed. The error
    is to where the guided teacher leads the same noise; `unguided_error` beside it is what there was to learn.
    """

    id = "lora-distillation"
    title = "LoRA-Enhanced Distillation on Guided Diffusion Models"
    says = "half the memory of a distillation with two networks, 40 % less time a sample (arXiv 2312.06899)"
    origin = "the card: bytes of 1/2 or less, and an error within 1.3 × of training all weights; rank 8 fixed before"
    primary = (
        Contrast(
            method="low rank", baseline="all weights", metric="training_bytes", at=AT, scale="log-ratio",
            higher_is_better=False, worst=1e9, expects=1.1, delta=math.log(2),
        ),
        Contrast(
            method="low rank", baseline="all weights", metric="endpoint_error", at=AT, scale="log-ratio",
            higher_is_better=False, worst=4.0, form="not-worse", expects=0.0, delta=math.log(1.3),
        ),
    )  # fmt: skip
    expects = 1.1
    delta = math.log(2)
    seeds = 8
    grids: ClassVar = {"low rank": {"lr": [3e-4, 1e-3, 3e-3, 1e-2]}, "all weights": {"lr": [1e-4, 3e-4, 1e-3, 3e-3]}}
    currency = "teacher_calls"
    methods = ("lora-distillation", "diffusion")
    trial_seeds = 2
    guidance = (3.0,)
    underpowered = "the spread between seeds was not measured before"

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Train a student, hold it against the guided teacher, and count its bytes."""
        bed = self.bed(run)
        teacher = self.teacher(run, bed)
        steps = 2 if self.quick else STEPS
        method = LoRADistillation(
            train=self.training(trial, optimizer=AdamW(lr=trial["lr"]), average=0.0),
            lora=LoRA(rank=RANK, layers="all") if name == "low rank" else None,
            guidance=TeacherGuidance(scale=self.guidance[0]),
            solver="ddim",
            steps=steps,
        )
        made = self.student(run, method, bed, teacher, seed=seed, calls=2)
        found = self.errors(run, bed, teacher, made, steps=steps, told=False)
        return found | {"training_bytes": float(training_bytes(made, teacher)), "stored_bytes": float(made.bytes)}


def training_bytes(made: Sampler, teacher: Sampler) -> int:
    """Return the bytes of all parameters in training, and of gradients and Adam's two averages of those trained."""
    whole = sum(tensor.numel() * tensor.element_size() for tensor in teacher.module.parameters())
    own = made.module.state_dict().values() if isinstance(made, AdaptedSampler) else made.module.parameters()
    trained = sum(tensor.numel() * tensor.element_size() for tensor in own)
    return whole + 4 * trained  # a student without adapters stands beside its teacher

"""What the claims of guidance distillation share: classes of several modes, and errors to a guided teacher."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from attar.artifacts.sampler import Sampler
from attar.claims.samplers import Bed, SamplerClaim
from attar.data.samples import PointSamples
from attar.diffusion.mixture import Mixture
from attar.diffusion.specs import AnyProcess
from attar.methods.sampler.diffusion import Diffusion
from attar.nets.denoiser_specs import DenoiserNet, PointMLP
from attar.run import Run

if TYPE_CHECKING:
    from attar.artifacts.couplings import Couplings

CLASSES, EACH = 4, 3  # modes of one class do not stand side by side, so that guidance bends what is a line otherwise
SPREAD = 0.4  # neighbours overlap: where they stand apart guidance hardly moves where a trajectory ends


class GuidedClaim(SamplerClaim):
    """An arm takes guidance over on a ring of twelve Gaussians, every fourth of which belongs to one class.

    Teachers and guided samples of theirs are shared by arms and seeds.
    """

    net: ClassVar[DenoiserNet] = PointMLP()
    guidance: ClassVar[Sequence[float]] = (2.0, 4.0)  # g at which arms are judged: w = 1 and 3
    source = "ring"
    uses = ("attar.claims.guided", "attar.metrics.generative")

    def bed(self, run: Run) -> Bed:
        """Return the points."""
        return Bed(classes_of_several_modes(), None)

    def teaching(self, bed: Bed, process: AnyProcess | None = None) -> Diffusion:
        """Return how a teacher is trained."""
        return dataclasses.replace(super().teaching(bed, process), net=self.net)

    def errors(
        self, run: Run, bed: Bed, teacher: Sampler, made: Sampler, *, steps: int, told: bool = True
    ) -> dict[str, float]:
        """Return `endpoint_error` to the guided teacher's DDIM from the same noise in as many steps.

        The geometric mean over the strengths, beside it that of the teacher without guidance.
        """
        errors, plain = [], []
        for scale in self.guidance:
            ends = self.guided(run, bed, teacher, scale, steps=steps, solver="ddim")
            name = f"endpoint_error_{steps}"
            errors.append(self.deviation(made, ends, (steps,), guidance=scale if told else None)[name])
            plain.append(self.deviation(teacher, ends, (steps,), guidance=1.0)[name])
        return {"endpoint_error": geometric_mean(errors), "unguided_error": geometric_mean(plain)}

    def guided(self, run: Run, bed: Bed, teacher: Sampler, scale: float, *, steps: int, solver: str) -> Couplings:
        """Return samples of the guided teacher, in a stage."""
        return self.references(
            run, bed, teacher, guidance=scale, solver=solver, **({} if self.quick else {"steps": steps})
        )


def classes_of_several_modes() -> PointSamples:
    """Return the points: twelve equal Gaussians on a circle, classes 0 to 3 in turn."""
    ring = Mixture.ring(CLASSES * EACH, std=SPREAD)
    return PointSamples(dataclasses.replace(ring, labels=torch.arange(CLASSES * EACH) % CLASSES), source="ring, 4 × 3")


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(sum(math.log(max(value, 1e-12)) for value in values) / len(values))

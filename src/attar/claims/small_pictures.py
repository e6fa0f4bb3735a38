"""The bed of claims and benches whose students come near the data: small pictures, and as low a floor as they allow."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from attar.claims.samplers import Bed, SamplerClaim
from attar.diffusion.specs import AnyProcess
from attar.methods.sampler.diffusion import Diffusion
from attar.nets.denoiser_specs import ResidualMLP
from attar.run import Run
from attar.train.generation import Asked, Score


class SmallPicturesClaim(SamplerClaim):
    """Students on Fashion-MNIST at 7 pixels, compared with all held-out pictures by thrice the usual samples.

    The Fréchet distance of as many real ones is 0.005 then, a fifth of what it is with the usual numbers. Teachers have
    features of time that are not steep, for students that take slopes in it.
    """

    source = "fashion-mnist?size=7"
    quick_source = "digits"
    batch = 128

    def teaching(self, bed: Bed, process: AnyProcess | None = None) -> Diffusion:
        """Return how a teacher is trained."""
        return dataclasses.replace(super().teaching(bed, process), net=ResidualMLP(frequency=2.0))

    def samples(self, bed: Bed) -> int:
        """Return how many samples of an arm are judged."""
        return super().samples(bed) * (1 if self.quick else 3)

    def _score(self, run: Run, bed: Bed, asked: Asked, ends: Tensor | None) -> Score:
        if ends is None and bed.test is not None and not self.quick:
            ends = bed.test.unit().cpu() * 2 - 1
        return super()._score(run, bed, asked, ends)

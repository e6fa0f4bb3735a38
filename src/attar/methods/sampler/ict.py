"""iCT: consistency training that needs neither a teacher nor an average to aim at (arXiv 2310.14189)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from attar.artifacts.drawing import Drawing, Multistep
from attar.diffusion.consistency import Boundary
from attar.diffusion.specs import EdmProcess
from attar.diffusion.weights import Weighting
from attar.losses.denoising import Distance
from attar.methods.sampler.consistency import Consistency
from attar.methods.sampler.core.times import Pairs
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.diffusion import Diffusion
from attar.nets.denoiser_specs import UNet
from attar.run import RAdam
from attar.spec import method

# the time features are slow: at 16 what a step learns at one σ does not reach its neighbour (section 3.2)
NETWORK = UNet(width=128, multipliers=(2, 2, 2), blocks=4, dropout=0.3, frequency=1.0)
SMALL: dict[str, Any] = {
    "teaching": {"net": {"kind": "residual-mlp", "frequency": 1.0}},
    "pairs": {"intervals": 160},
    "train": {"steps": 6000, "batch": 128, "optimizer": {"lr": 1e-3}, "average": None},
}


@method
class ImprovedConsistencyTraining(Consistency):
    """Train a one-step generator on data alone (Song and Dhariwal 2023, arXiv 2310.14189).

    L = E 1/(σ_{i+1} − σ_i) · d(f_θ(x + σ_{i+1} z, σ_{i+1}), sg f_θ(x + σ_i z, σ_i)), d = √(‖a − b‖² + c²) − c over the
    whole sample with c = 0.00054 √d, both sides with one dropout mask. Intervals double from 10 to 1280; which one is
    looked at follows ln σ ~ N(−1.1, 2²). A teacher, where one is given, is only where the weights begin; both are
    networks that predict `edm`.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {"small": SMALL}

    teaching: Diffusion = Diffusion(net=NETWORK, process=EdmProcess())  # the student's own form; nobody teaches
    train: SamplerTraining = SamplerTraining(
        steps=400_000, batch=1024, optimizer=RAdam(lr=1e-4), average=0.99993, clip=None
    )  # CIFAR-10's; ImageNet-64: 800,000 of 4096, average 0.99997
    pairs: Pairs = Pairs(intervals=1280, first=10, chosen="log-normal", ends_at="first-level")
    neighbour: Literal["solver", "noise"] = "noise"  # the same sample with the same noise
    boundary: Boundary = "cm"
    distance: Distance = "huber"
    weight: Literal["none", "interval"] | Weighting = "interval"
    target: float | None = Field(None, ge=0, lt=1)  # decay of the average aimed at; none: itself, without gradient
    times: tuple[float, ...] = (0.821,)  # σ of the second step, CIFAR-10's

    def drawing(self) -> Drawing:
        """Return the consistency sampler, which noises to `times` between its steps."""
        return Multistep(steps=self.steps or 1, boundary=self.boundary, scaling=self.scaling, times=self.times)

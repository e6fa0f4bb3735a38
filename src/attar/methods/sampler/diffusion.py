"""Diffusion: learn to take noise out of samples, at every strength; the teacher of every other method here."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from attar.artifacts.drawing import Drawing, Ode
from attar.artifacts.sampler import Reading, Sampler
from attar.data import Samples
from attar.diffusion import Prediction, check_prediction, coefficients, spread
from attar.diffusion.denoiser import Denoiser
from attar.diffusion.specs import AnyProcess, FlowProcess
from attar.diffusion.weights import Weighting, denoising_weight
from attar.losses.denoising import squared
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import Batch, SamplerTraining, batch_of, trained
from attar.nets.denoiser_specs import DenoiserNet, ResidualMLP
from attar.run import Run
from attar.spec import method

SMALL: dict[str, Any] = {"train": {"steps": 3000}}
DENSE: dict[str, Any] = {**SMALL, "net": {"frequency": 2.0}}  # steep time features spoil derivatives in t (2503.09641)


def denoising_loss(view: Denoiser, batch: Batch, t: Tensor, weighting: Weighting | None = None) -> Tensor:
    """Return the loss of each sample `[n]`: of the network's own prediction, or w(t) · mean (x̂0 − x0)².

    x_t = α_t x0 + σ_t ε; the network's own target is a x0 + b ε (`attar.diffusion.prediction`).
    """
    x0 = batch.x0
    x_t = view.process.diffuse(x0, batch.noise, t).to(x0.dtype)
    if weighting is not None:
        weight = denoising_weight(weighting, view.process, t).to(x0.dtype)
        return weight * squared(view.x0(x_t, t, batch.condition), x0)
    a, b = (spread(value, x0) for value in coefficients(view.prediction, view.process, t))
    return squared(view.output(x_t, t, batch.condition), (a * x0 + b * batch.noise).to(x0.dtype))


@method
class Diffusion:
    """Train a denoiser on any process, with any prediction (Ho et al. 2020, arXiv 2006.11239, and its successors).

    L = E over samples, noise and t of the square error of what the network predicts (flow matching, ε, v, EDM's F …) or
    of x0 with a weight. A share of conditions is dropped, so that guidance finds a null condition.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {"small": SMALL, "dense": DENSE}

    net: DenoiserNet = ResidualMLP()
    process: AnyProcess = FlowProcess()
    prediction: Prediction | None = None  # what the network gives; none: the usual one of the process
    times: Times = Times()
    weighting: Weighting | None = None  # of the error of x0; none: the plain error of the network's own prediction
    drop: float = Field(0.1, ge=0, lt=1)  # share of conditions that are dropped
    train: SamplerTraining = SamplerTraining()
    drawing: Drawing = Ode()  # how samples are drawn when all is done
    guidance: float = Field(1.0, ge=0)  # g of u + g (c − u) that samples are drawn with; 1 is none

    @model_validator(mode="after")
    def _possible(self) -> Diffusion:
        check_prediction(self.predicts, self.process.build())
        return self

    @property
    def predicts(self) -> Prediction:
        """What the network gives."""
        return self.prediction or self.process.predicts

    def __call__(self, run: Run, *, data: Samples) -> Sampler:
        """Train the network."""
        reading = Reading(process=self.process, prediction=self.predicts, drawing=self.drawing, guidance=self.guidance)
        student = Sampler.fresh(self.net, data, reading, run.rng("net"))
        module = student.module.to(run.device)
        learner = self.train.learner(run, "denoiser", module)
        view = student.denoiser
        for step in run.loop("denoise", self.train.steps):
            module.train()
            batch = batch_of(run, data, self.train.batch, step, drop=self.drop)
            t = batch.mine(self.times.draw(batch.total, view.process, run.rng("time", step)))
            learner.update(batch.mean(denoising_loss(view, batch, t, self.weighting)))
        return student.with_module(trained(learner))

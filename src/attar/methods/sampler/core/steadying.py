"""Steadying: a teacher learns on with a gentler time embedding, before anyone takes its derivative by time."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from pydantic import Field

from attar.artifacts.sampler import Sampler
from attar.data import Samples
from attar.errors import RecipeError
from attar.methods.sampler.core.teacher import GivenTeacher, ready, seen
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import SamplerTraining, batch_of, trained
from attar.methods.sampler.diffusion import Diffusion, denoising_loss
from attar.nets.denoiser_specs import DenoiserNet, DiffusersNet
from attar.run import AdamW, Run
from attar.spec import method


@method
class Steadying:
    """Tune a whole teacher with labels of time that rise more slowly (Chen et al. 2025, SANA-Sprint, 2503.09641).

    A network that is told 1000 t has a derivative by t about a thousand times as steep as one that is told t. Tuning
    the time embedding alone is not enough: losses explode when the rest follows.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {"small": {"train": {"steps": 1000, "batch": 128, "optimizer": {"lr": 1e-4}}}}

    time_scale: float = Field(1.0, gt=0)  # of labels; teachers that have a smaller one stay as they are
    config: dict[str, Any] = Field(default_factory=dict)  # of a diffusers network: {"qk_norm": "rms_norm_…"}
    times: Times = Times(kind="logit-normal")
    drop: float = Field(0.1, ge=0, lt=1)  # share of conditions that are dropped
    train: SamplerTraining = SamplerTraining(steps=5000, batch=512, optimizer=AdamW(lr=2e-5))  # batch and rate: ours

    def concerns(self, net: DenoiserNet) -> bool:
        """Return whether a teacher's network is steeper than wanted."""
        return net.time_scale > self.time_scale

    def changed(self, net: DenoiserNet) -> DenoiserNet:
        """Return the spec of the steadied network.

        Raises:
            RecipeError: values for a network that takes none.
        """
        if not self.config:
            return dataclasses.replace(net, time_scale=self.time_scale)
        if not isinstance(net, DiffusersNet):
            raise RecipeError(f"steadying.config changes networks of diffusers, and the teacher's is '{net.kind}'")
        return dataclasses.replace(net, time_scale=self.time_scale, config={**net.config, **self.config})

    def __call__(self, run: Run, *, data: Samples, teacher: GivenTeacher) -> Sampler:
        """Train the teacher on; what its network did not have before, such as norms, begins as new."""
        data = seen(data, teacher)
        known = ready(run, data, teacher, Diffusion()).sampler
        if known is None:
            raise RecipeError("a teacher in closed form has no network to steady")
        known = known.merged()
        before = getattr(known.module, "as_built", known.net)
        made = Sampler.fresh(self.changed(before), data, known.reading, run.rng("net"), extras=known.extras)
        lost = made.module.load_state_dict(known.module.state_dict(), strict=False).unexpected_keys
        if lost:
            raise RecipeError(
                f"the steadied network has no place for the teacher's {lost[0]}; look at steadying.config"
            )
        module = made.module.to(run.device).requires_grad_(True)
        learner, view = self.train.learner(run, "teacher", module), made.denoiser
        for step in run.loop("steady", self.train.steps):
            module.train()
            batch = batch_of(run, data, self.train.batch, step, drop=self.drop)
            t = batch.mine(self.times.draw(batch.total, view.process, run.rng("time", step)))
            learner.update({"denoising": batch.mean(denoising_loss(view, batch, t))})
        return made.with_module(trained(learner))

"""ControlNet-Transformer: a frozen transformer learns to follow edges, its own weights untouched (arXiv 2401.05252)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from attar.artifacts.adapted import AdaptedSampler
from attar.data import Samples
from attar.diffusion import coefficients, spread
from attar.errors import RecipeError
from attar.losses.denoising import squared
from attar.losses.frequency import edges
from attar.methods.sampler.core.teacher import GivenTeacher, ready
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import SamplerTraining, batch_of, trained
from attar.methods.sampler.diffusion import Diffusion
from attar.nets.adapter_specs import ControlBlocks
from attar.nets.denoiser_specs import DiT
from attar.run import AdamW, Run
from attar.spec import method


def edge_map(x0: Tensor) -> Tensor:
    """Return the edges of pictures `[n, C, H, W]` in [-1, 1] as one channel `[n, 1, H, W]`, from 0 up to about 1."""
    return edges(x0).amax(1, keepdim=True)


@method
class ControlTransformer:
    """Let a frozen transformer be led by edges (Chen et al. 2024, PixArt-δ, arXiv 2401.05252, section 3.3).

    The first N blocks get trainable copies: h'_1 = copy_1(h_1 + Z_0 p), h'_{i+1} = copy_{i+1}(h'_i), and frozen block i
    hands on block_i(h_i) + Z_i h'_i, where p are the picture's patches and every Z is a linear layer that begins at
    zero. Copies and Z learn what the network itself once learned: L = ‖F(x_t, t, c, edges(x0)) − (a x0 + b ε)‖². Draw
    samples with `sampler(n, {"condition": labels, "control": edge_map(pictures)})`.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "teaching": {"train": {"steps": 2000, "batch": 64}},
            "copies": {"blocks": 2},
            "train": {"steps": 800, "batch": 64, "optimizer": {"lr": 1e-3}},
        }
    }

    copies: ControlBlocks = ControlBlocks()
    teaching: Diffusion = Diffusion(net=DiT())  # of a teacher that is not given
    times: Times = Times()
    train: SamplerTraining = SamplerTraining(steps=20_000, batch=64, optimizer=AdamW(lr=2e-5))

    def __call__(self, run: Run, *, data: Samples, teacher: GivenTeacher | None = None) -> AdaptedSampler:
        """Train the copies.

        Raises:
            RecipeError: a teacher in closed form, one that is no transformer, or pictures are shown of another form.
        """
        known = ready(run, data, teacher, self.teaching).sampler
        if known is None or len(data.shape) != 3 or self.copies.channels != 1:
            raise RecipeError("edges are one channel (copies.channels=1) of pictures, which lead a network of patches")
        student = AdaptedSampler.around(known, self.copies, run.rng("copies"), guidance=1.0)
        learner = self.train.learner(run, "copies", student.module.to(run.device).requires_grad_(True))
        view = student.denoiser
        for step in run.loop("control", self.train.steps):
            student.module.train()
            batch = batch_of(run, data, self.train.batch, step)
            t = batch.mine(self.times.draw(batch.total, view.process, run.rng("time", step)))
            x_t = view.process.diffuse(batch.x0, batch.noise, t).to(batch.x0.dtype)
            a, b = (spread(value, x_t) for value in coefficients(view.prediction, view.process, t))
            condition: Any = {**_named(batch.condition), "control": edge_map(batch.x0)}
            made = view.output(x_t, t, condition)
            learner.update(batch.mean(squared(made, (a * batch.x0 + b * batch.noise).to(made.dtype))))
        return student.with_module(trained(learner))


def _named(condition: Tensor | None) -> dict[str, Tensor]:
    return {} if condition is None else {"condition": condition}

"""A discriminator on what a frozen teacher sees in noised samples, block by block (LADD, arXiv 2403.12015)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attar import nets
from attar.artifacts.sampler import Sampler
from attar.diffusion import renoise
from attar.diffusion.view import Condition
from attar.errors import RecipeError
from attar.losses.adversarial import Game, fooling_loss, telling_loss
from attar.methods.sampler.core.distillation import Lesson, Moment
from attar.methods.sampler.core.score import FakeScore
from attar.methods.sampler.core.times import Times
from attar.nets.initialise import seeded
from attar.run import Adam, Learner, Optimizer
from attar.spec import spec

LISTS = ("blocks", "layers", "transformer_blocks", "down", "down_blocks", "middle", "mid_block")  # by first that exist


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a denoiser from the input on: of a transformer or MLP all, of a U-Net the way down.

    Raises:
        RecipeError: a network without lists of blocks that are known by name.
    """
    for owner in module.modules():
        found = [getattr(owner, name) for name in LISTS if isinstance(getattr(owner, name, None), nn.Module)]
        if found:
            lists = [list(one) if isinstance(one, nn.ModuleList) else [one] for one in found]
            return [block for one in lists for block in one]
    raise RecipeError(f"{type(module).__name__} has none of {', '.join(LISTS)}, so no features of it can be read")


class Features:
    """What passes through some blocks of a sampler's network, as `[n, places, width]`, with gradients to the input.

    Args:
        sampler: whose network is asked; its weights should be frozen.
        depths: shares of the blocks, in (0, 1]; 1 is the last.
    """

    def __init__(self, sampler: Sampler, depths: Sequence[float]) -> None:
        self.view, blocks = sampler.denoiser, blocks_of(sampler.module)
        places = sorted({max(1, round(depth * len(blocks))) - 1 for depth in depths})
        self.blocks = [blocks[place] for place in places]

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Return the features of noised samples x `[n, …]` at times `[n]`."""
        found: dict[int, Tensor] = {}

        def keep(place: int, layer: nn.Module, given: Any, output: Any) -> None:
            found[place] = output if isinstance(output, Tensor) else [o for o in output if isinstance(o, Tensor)][-1]

        handles = [b.register_forward_hook(functools.partial(keep, place)) for place, b in enumerate(self.blocks)]
        try:
            self.view.output(x, t, condition)
        finally:
            for handle in handles:
                handle.remove()
        return [_in_places(found[place]) for place in range(len(self.blocks))]


def _in_places(features: Tensor) -> Tensor:
    """Return vectors `[n, width]`, tokens `[n, t, width]` or maps `[n, C, H, W]` as `[n, places, width]`."""
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2)
    return features[:, None] if features.dim() == 2 else features


class Head(nn.Module):
    """A logit for each place of features `[n, places, width]`: normalised, one hidden layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, hidden), nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits `[n, places]`."""
        hidden = self.first(functional.layer_norm(features, features.shape[-1:]))
        logits: Tensor = self.last(functional.leaky_relu(hidden, 0.2))
        return logits.squeeze(-1)


@spec
class Adversary:
    """A discriminator of noised samples: small heads on blocks of the frozen teacher, told time and condition."""

    weight: float = Field(0.0, ge=0)  # of the student's term beside its others; 0: no discriminator
    game: Game = "hinge"
    depths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)  # shares of the teacher's blocks, each with a head
    hidden: int = Field(64, ge=1)  # units of a head
    times: Times = Times(kind="log-normal", mean=-0.6, std=1.0)  # that samples are noised to; SANA-Sprint's
    mismatched: bool = False  # real samples with another's condition count as made ones too
    smooth: float = Field(0.0, ge=0)  # weight of (D(x) − D(x + 0.1 z))² on real samples, the approximate R1
    optimizer: Optimizer = Adam(lr=1e-3, beta1=0.0, beta2=0.99)

    def build(self, lesson: Lesson, name: str = "discriminator", trunk: FakeScore | None = None) -> Discriminator:
        """Return the discriminator with its learner; call it in a method's `build`.

        With a fake score as `trunk` the heads stand on its blocks (DMD2).

        Raises:
            RecipeError: a teacher in closed form, which has no features.
        """
        known = lesson.teacher.sampler if lesson.teacher is not None else None
        known = known if trunk is None else trunk.sampler
        if known is None:
            raise RecipeError(
                "a discriminator reads the blocks of the teacher's network, and this teacher is none: take a run of "
                "diffusion as teacher, or put the adversarial weight (of hyper-sd: fooling) to 0"
            )
        features = Features(known, self.depths)
        x = torch.zeros(1, *known.shape, device=lesson.run.device)
        condition = lesson.data.condition(torch.zeros(1, dtype=torch.long))
        middle = torch.full((1,), known.denoiser.process.t_max / 2, device=x.device, dtype=torch.float64)
        with torch.no_grad():
            seen = features(x, middle, None if condition is None else condition.to(x.device))
        with seeded(torch.Generator()):
            heads = nn.ModuleList(Head(one.shape[-1], self.hidden) for one in seen)
        nets.reset(heads, lesson.run.rng(name))
        learner = lesson.run.learner(name, heads.to(lesson.run.device), self.optimizer)
        return Discriminator(self, features, learner)


class Discriminator:
    """Tells made samples from real ones at some noise; `term` is the student's side, `step` its own.

    Args:
        spec: how.
        features: what is read of the teacher.
        learner: of the heads.
    """

    def __init__(self, spec: Adversary, features: Features, learner: Learner) -> None:
        self.spec, self.features, self.learner = spec, features, learner
        self._fake: tuple[Tensor, Tensor] | None = None  # noised, and when

    def logits(self, x_t: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Return each head's logits `[n, places]` of noised samples `[n, …]` at times `[n]`."""
        assert self.learner.module is not None
        heads = list(self.learner.module.children())
        return [head(seen) for head, seen in zip(heads, self.features(x_t, t, condition), strict=True)]

    def term(self, moment: Moment, made: Tensor, at: Tensor | None = None) -> Tensor:
        """Return this process's share of the mean loss of made samples `[n, …]`, of noise level `at` `[n]` or clean.

        They are noised on to a drawn time, and remembered for `step`. The spec's weight is not in it.
        """
        x_t, t = self.noised(moment, made, at)
        self._fake = x_t.detach(), t
        logits = self.logits(x_t, t, moment.batch.condition)
        return moment.batch.mean(_mean([fooling_loss(one, self.spec.game) for one in logits]))

    def step(self, moment: Moment, real: Tensor | None = None) -> None:
        """Learn to tell the samples that `term` was shown from real ones (none: the batch's), at the same noise."""
        assert self._fake is not None, "the student's term comes before the discriminator's step"
        self.learner.update({"telling": self.telling(moment, *self._fake, real)})
        self._fake = None

    def noised(self, moment: Moment, made: Tensor, at: Tensor | None = None, *counters: int) -> tuple[Tensor, Tensor]:
        """Return samples `[n, …]` of noise level `at` `[n]` (none: clean), noised on to a drawn time, and the times."""
        process, batch = self.features.view.process, moment.batch
        rng = moment.run.rng("adversarial time", moment.step, *counters)
        drawn = batch.mine(self.spec.times.draw(batch.total, process, rng))
        at = torch.zeros_like(drawn) if at is None else at
        t = torch.maximum(drawn, at)
        return renoise(process, made, at, t, moment.noise("adversarial noise", made, *counters)), t

    def telling(self, moment: Moment, fake_t: Tensor, t: Tensor, real: Tensor | None = None, *counters: int) -> Tensor:
        """Return this process's share of the mean loss of telling noised samples from real ones at the same noise."""
        batch, game = moment.batch, self.spec.game
        real = batch.x0 if real is None else real
        noise = moment.noise("adversarial noise", real, *counters)
        real_t = self.features.view.process.diffuse(real, noise, t).to(real.dtype)
        told, made = self.logits(real_t, t, batch.condition), self.logits(fake_t, t, batch.condition)
        loss = _mean([telling_loss(r, f, game) for r, f in zip(told, made, strict=True)])
        if self.spec.mismatched and batch.condition is not None:
            other = moment.neighbours(batch.condition)
            wrong = self.logits(real_t, t, other)
            either = 0.5 * (loss + _mean([telling_loss(r, f, game) for r, f in zip(told, wrong, strict=True)]))
            differs = (other != batch.condition).flatten(1).any(1) if other.dim() > 1 else other != batch.condition
            loss = torch.where(differs, either, loss)  # a neighbour may have the same condition
        if self.spec.smooth:
            shaken = real_t + 0.1 * moment.noise("adversarial shake", real, *counters)
            near = self.logits(shaken, t, batch.condition)
            loss = loss + self.spec.smooth * _mean([(r - s).square() for r, s in zip(told, near, strict=True)])
        return batch.mean(loss)


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Return the mean over heads of the mean over places `[n]`."""
    return torch.stack([one.mean(1) for one in values]).mean(0)

"""Attacks on a classifier within a small box around each picture, and how many pictures withstand all of them.

Pixels are in [0, 1], `[n, C, S, S]`; `logits` takes pixels (it normalises them itself). A network is attacked in
evaluation mode, whatever mode it was in, and keeps its gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.errors import DataError
from attar.spec import spec

Logits = Callable[[Tensor], Tensor]


@spec
class Attack:
    """Projected gradient ascent in the box of `radius` about a picture (Madry et al. 2018, arXiv 1706.06083)."""

    radius: float = Field(8 / 255, gt=0)  # largest change of a pixel in [0, 1]
    step: float = Field(2 / 255, gt=0)
    steps: int = Field(10, ge=1)
    start: Literal["near", "anywhere"] = "near"  # 0.001 · N(0, 1) away, or uniform in the box
    loss: Literal["cross-entropy", "margin"] = "cross-entropy"  # margin: the largest other logit less the label's

    def __call__(self, logits: Logits, pixels: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Return attacked pixels; `rng` is a CPU generator."""
        if self.start == "near":
            away = 0.001 * torch.randn(pixels.shape, generator=rng)
        else:
            away = self.radius * (2 * torch.rand(pixels.shape, generator=rng) - 1)
        low, high = (pixels - self.radius).clamp(0, 1), (pixels + self.radius).clamp(0, 1)
        attacked = (pixels + away.to(pixels.device)).clamp(0, 1)
        for _ in range(self.steps):
            attacked = attacked.detach().requires_grad_()
            with torch.enable_grad():
                loss = self._loss(logits(attacked), labels)
            gradient = torch.autograd.grad(loss, attacked)[0]
            attacked = torch.minimum(torch.maximum(attacked.detach() + self.step * gradient.sign(), low), high)
        return attacked.detach()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss == "cross-entropy":
            return nn.functional.cross_entropy(logits, labels, reduction="sum")
        return -margins(logits, labels).sum()


@spec
class SquareSearch:
    """Squares at random, kept where the margin falls (Andriushchenko et al. 2020, arXiv 1912.00049)."""

    radius: float = Field(8 / 255, gt=0)  # largest change of a pixel in [0, 1]
    queries: int = Field(200, ge=1)  # forward passes; 5,000 in AutoAttack
    share: float = Field(0.8, gt=0, le=1)  # of the picture that the first squares cover; it halves as queries pass

    @torch.no_grad()
    def __call__(self, logits: Logits, pixels: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Return attacked pixels; `rng` is a CPU generator."""
        count, channels, size, _ = pixels.shape

        def signs(*shape: int) -> Tensor:
            drawn = torch.randint(0, 2, shape, generator=rng).to(pixels.device, pixels.dtype)
            return self.radius * (2 * drawn - 1)

        best = (pixels + signs(count, channels, 1, size)).clamp(0, 1)  # stripes
        margin = margins(logits(best), labels)
        place = torch.arange(size, device=pixels.device)
        for query in range(self.queries):
            side = max(1, round(size * (self.share * _left(query / self.queries)) ** 0.5))
            top, left = torch.randint(0, size - side + 1, (2, count, 1), generator=rng).to(pixels.device)
            rows, columns = ((place >= at) & (place < at + side) for at in (top, left))
            inside = (rows[:, :, None] & columns[:, None, :])[:, None]
            tried = torch.where(inside, (pixels + signs(count, channels, 1, 1)).clamp(0, 1), best)
            found = margins(logits(tried), labels)
            better = found < margin
            best = torch.where(better[:, None, None, None], tried, best)
            margin = torch.where(better, found, margin)
        return best


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the label's logit less the largest other `[n]`; below 0 the answer is wrong."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return own[:, 0] - others


def strong_attacks(
    radius: float, steps: int = 50, restarts: int = 2, queries: int = 200
) -> tuple[Attack | SquareSearch, ...]:
    """Return what AutoAttack is made of, in simple forms: both losses with restarts, and a search without gradients.

    Steps are 2.5 · radius / steps long, so that the whole box can be reached (arXiv 1706.06083; 2003.01690).
    """
    step = 2.5 * radius / steps
    plain = Attack(radius=radius, step=step, steps=steps, start="anywhere")
    margin = dataclasses.replace(plain, loss="margin")
    return (*(plain, margin) * restarts, SquareSearch(radius=radius, queries=queries))


def robust_accuracy(
    module: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    attacks: Sequence[Attack | SquareSearch],
    *,
    normalise: Callable[[Tensor], Tensor] = lambda x: x,
    seed: int = 0,
    chunk: int = 256,
) -> float:
    """Return the share in [0, 1] of pictures that a network gets right as they are and under every one of the attacks.

    Args:
        module: the network; it reads `normalise(pixels)`.
        pixels: `[n, C, S, S]` in [0, 1].
        labels: `[n]`.
        attacks: one after another; a picture that one has turned is not tried again.
        seed: of their draws.

    Raises:
        DataError: no pictures.
    """
    if not len(pixels):
        raise DataError("there is no sample to measure on")
    rng, right = torch.Generator().manual_seed(seed), 0
    with attackable(module, normalise) as logits:
        for x, y in zip(pixels.split(chunk), labels.split(chunk), strict=True):
            with torch.no_grad():
                left = (logits(x).argmax(1) == y).nonzero().flatten()
            for attack in attacks:
                if not len(left):
                    break
                attacked = attack(logits, x[left], y[left], rng)
                with torch.no_grad():
                    left = left[logits(attacked).argmax(1) == y[left]]
            right += len(left)
    return right / len(pixels)


@contextmanager
def attackable(module: nn.Module, normalise: Callable[[Tensor], Tensor]) -> Iterator[Logits]:
    """Hold a network in evaluation mode, and give its logits as a function of pixels in [0, 1]."""
    training = module.training
    module.eval()
    try:
        yield lambda pixels: module(normalise(pixels))
    finally:
        module.train(training)


def _left(passed: float) -> float:
    """Return AutoAttack's factor of the squares' area: halved at 10, 50, 200, 500, 1000, … of 10,000 queries."""
    halvings = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    return float(0.5 ** sum(passed * 10_000 > at for at in halvings))

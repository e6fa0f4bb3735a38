"""Samples as an autoencoder's latents, with what a text encoder says of their captions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from attar.data.samples import Samples
from attar.spec import digest


class LatentSamples(Samples):
    """Latents as samples, drawn with replacement.

    Args:
        latents: float32 `[N, C, H, W]`, scaled as the generator takes them.
        which: int64 `[N]`, the number of each one's caption or class.
        conditions: captions or classes.
        vectors: float32 `[captions, width]`, what networks are told of each; none: its number.
        source: where they come from.
    """

    def __init__(
        self, latents: Tensor, which: Tensor, conditions: Sequence[str], vectors: Tensor | None, *, source: str
    ) -> None:
        self.latents, self.which, self.vectors, self.source = latents, which, vectors, source
        self.shape, self.conditions = tuple(latents.shape[1:]), tuple(conditions)

    def draw_named(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `n` latents `[n, C, H, W]` and the numbers of their names."""
        chosen = torch.randint(len(self.latents), (n,), generator=rng)
        return self.latents[chosen], self.which[chosen]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the latents, the captions and what is told of them."""
        told = [] if self.vectors is None else self.vectors.tolist()
        return digest([self.latents.flatten().tolist(), self.which.tolist(), list(self.conditions), told])

"""MixUp and CutMix of a batch with itself, and the labels that belong to the mixed pictures."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from attar.data.soft_labels.views import cutmix
from attar.spec import spec


@spec
class Mixing:
    """How two images become one: a batch with its reverse, one draw for all. Defaults are DeiT's (arXiv 2012.12877)."""

    mixup: float = Field(0.8, ge=0)  # shares ~ Beta(a, a) (arXiv 1710.09412); 0: no MixUp
    cutmix: float = Field(1.0, ge=0)  # area that stays ~ Beta(a, a) (arXiv 1905.04899); 0: no CutMix
    switch: float = Field(0.5, ge=0, le=1)  # chance of CutMix where both are on
    smoothing: float = Field(0.1, ge=0, le=1)  # of the labels, towards uniform

    def probabilities(self, labels: Tensor, classes: int) -> Tensor:
        """Return smoothed one-hot labels `[n, classes]`."""
        one_hot = torch.nn.functional.one_hot(labels, classes).float()
        return (1 - self.smoothing) * one_hot + self.smoothing / classes

    def mixed(self, images: Tensor, labels: Tensor, classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return mixed images `[n, C, S, S]` and their probabilities `[n, classes]`, for labels `[n]`."""
        told = self.probabilities(labels, classes)
        draws = torch.rand(4, generator=rng, dtype=torch.double).tolist()
        cuts = self.cutmix and (not self.mixup or draws[0] < self.switch)
        alpha = self.cutmix if cuts else self.mixup
        if not alpha:
            return images, told
        share = beta_quantile(draws[1], alpha)
        if not cuts:
            return torch.lerp(images.flip(0), images, share), torch.lerp(told.flip(0), told, share)
        box = rectangle(share, images.shape[-1], draws[2], draws[3])
        kept = 1 - box[2] * box[3] / images.shape[-1] ** 2
        paste = torch.tensor([box]).expand(len(images), 4)
        return cutmix(images, images.flip(0), paste), torch.lerp(told.flip(0), told, kept)


def beta_quantile(u: float, alpha: float) -> float:
    """Return the value below which Beta(alpha, alpha) falls with the chance `u`."""
    from scipy.special import betaincinv

    return float(betaincinv(alpha, alpha, u))


def rectangle(share: float, size: int, across: float, down: float) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of an area (1 − share) · size², clipped at the border.

    Its centre is at (down, across) of the side, both in [0, 1).
    """
    side = int(size * math.sqrt(1 - share))
    top, left = int(down * size) - side // 2, int(across * size) - side // 2
    bottom, right = min(top + side, size), min(left + side, size)
    top, left = max(top, 0), max(left, 0)
    return top, left, bottom - top, right - left

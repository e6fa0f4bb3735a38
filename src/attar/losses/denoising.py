"""Distances between samples, one number a sample, as losses of generators use them; any shape behind the first."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from attar.errors import RecipeError, did_you_mean

Distance = Literal["l2", "l1", "huber", "huber-element"]


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over a sample of (a − b)² `[n]`."""
    return (a - b).square().flatten(1).mean(1)


def absolute(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over a sample of |a − b| `[n]`."""
    return (a - b).abs().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor, constant: float | None = None) -> Tensor:
    """Return √(‖a − b‖² + c²) − c `[n]`, the norm over the whole sample of d numbers.

    c is 0.00054 √d unless given (Song and Dhariwal 2023, arXiv 2310.14189, section 3.3).
    """
    difference = (a - b).flatten(1)
    c = 0.00054 * math.sqrt(difference.shape[1]) if constant is None else constant
    return (difference.square().sum(1) + c * c).sqrt() - c


def pseudo_huber_elements(a: Tensor, b: Tensor, constant: float | None = None) -> Tensor:
    """Return the mean over a sample of √((a − b)² + c²) − c `[n]`, c = 0.001 unless given (LCM, arXiv 2310.04378)."""
    c = 0.001 if constant is None else constant
    return (((a - b).square() + c * c).sqrt() - c).flatten(1).mean(1)


def sample_distance(a: Tensor, b: Tensor, kind: Distance, constant: float | None = None) -> Tensor:
    """Return the distance of each sample `[n]` between `[n, …]` tensors; `constant` is c of the pseudo-Huber kinds.

    Raises:
        RecipeError: an unknown kind, shapes that differ, or a constant that is not positive.
    """
    if a.shape != b.shape:
        raise RecipeError(f"a distance is between samples of one shape; got {list(a.shape)} and {list(b.shape)}")
    if constant is not None and constant <= 0:
        raise RecipeError(f"the constant of a pseudo-Huber distance is positive; got {constant}")
    if kind == "l2":
        return squared(a, b)
    if kind == "l1":
        return absolute(a, b)
    if kind == "huber":
        return pseudo_huber(a, b, constant)
    if kind == "huber-element":
        return pseudo_huber_elements(a, b, constant)
    raise RecipeError(f"unknown distance '{kind}'{did_you_mean(kind, get_args(Distance))}")


def replaced_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Return a loss `[n]` whose gradient in x `[n, …]` is `gradient`: the sum over a sample of ½ (x − sg(x − g))².

    NaN and infinity in the gradient count as 0 (Yin et al. 2024, arXiv 2311.18828).
    """
    wanted = (x - torch.nan_to_num(gradient, 0.0, 0.0, 0.0)).detach()
    return 0.5 * (x - wanted).square().flatten(1).sum(1)

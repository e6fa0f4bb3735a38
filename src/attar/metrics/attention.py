"""How differently the heads of a transformer look: how far away, and how much a place decides where it looks."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_distance(weights: Tensor, side: int) -> Tensor:
    """Return each head's mean distance `[heads]`, in places, between who looks and what is looked at.

    `weights` `[n, heads, side², side²]` are the attention of places to places, row by row; rows need not sum to one
    (Dosovitskiy et al. 2021, arXiv 2010.11929, appendix D.7).

    >>> attention_distance(torch.eye(4)[None, None], 2)
    tensor([0.])
    """
    place = torch.arange(side**2, device=weights.device)
    points = torch.stack([place // side, place % side], 1).to(weights.dtype)
    normed = weights / weights.sum(-1, keepdim=True)
    return (normed * torch.cdist(points, points)).sum(-1).mean((0, 2))


def attention_information(weights: Tensor) -> Tensor:
    """Return each head's mutual information `[heads]` of who looks and what is looked at, in [0, 1].

    I(q; k) / √(H(q) H(k)) with p(q) uniform and p(k | q) the weights `[n, heads, q, k]`, then the mean over images: 0
    where all places look alike, 1 where each looks at one of its own (Park et al. 2023, arXiv 2305.00729).
    """
    weights = weights.double()
    conditional = weights / weights.sum(-1, keepdim=True)
    count = conditional.shape[-2]
    joint = conditional / count
    keys = joint.sum(-2)
    information = torch.xlogy(joint, joint).sum((-2, -1)) - torch.xlogy(keys, keys).sum(-1)
    entropies = -math.log(count) * torch.xlogy(keys, keys).sum(-1)
    information = information + math.log(count)
    return (information / entropies.clamp_min(1e-12).sqrt()).clamp(0, 1).mean(0)

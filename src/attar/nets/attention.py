"""Attention, fused where that pays."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_MANY = 2**16  # queries times keys, from which on torch's fused attention pays on a CPU


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, causal: bool = False) -> Tensor:
    """Return softmax(q kᵀ · scale) v, `[n, heads, queries, width]`.

    On a CPU torch's fused attention multiplies many small matrices one by one: of few tokens its gradient takes up to
    ten times as long as three products do, where oneDNN multiplies (`attar.run.products`).

    Args:
        q: queries `[n, heads, queries, width]`.
        k: keys `[n, heads, keys, width]`.
        v: values, of the keys' shape.
        scale: of the logits; 1 / √width if not given.
        causal: a query sees the keys up to its own place.
    """
    if q.device.type != "cpu" or q.shape[-2] * k.shape[-2] > _MANY:
        return functional.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)
    logits = (q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)) @ k.transpose(-2, -1)
    if causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(later, -math.inf)
    return logits.softmax(-1) @ v

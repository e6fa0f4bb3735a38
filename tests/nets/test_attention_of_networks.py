"""Attention is the same written out and fused, and each is taken where it pays."""

import pytest
import torch
from torch.nn import functional

from attar.nets import attention as module
from attar.nets.attention import attention


def parts(queries=5, keys=7):
    rng = torch.Generator().manual_seed(0)
    shapes = [(2, 3, queries, 4), (2, 3, keys, 4), (2, 3, keys, 4)]
    return [torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("fields", [{}, {"scale": 0.2}, {"causal": True}, {"scale": 3.0, "causal": True}])
def test_written_out_it_is_what_torch_says(fields):
    given = parts(keys=5 if fields.get("causal") else 7)
    wanted = functional.scaled_dot_product_attention(
        *given, scale=fields.get("scale"), is_causal=fields.get("causal", False)
    )
    found = attention(*given, **fields)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(*(torch.autograd.grad(out.sin().sum(), given) for out in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b)


def test_many_tokens_are_fused(monkeypatch):
    calls = []

    def fused(q, k, v, **fields):
        calls.append(q.shape[-2] * k.shape[-2])
        return v

    monkeypatch.setattr(functional, "scaled_dot_product_attention", fused)
    attention(*parts())
    assert calls == []
    monkeypatch.setattr(module, "_MANY", 34)
    attention(*parts())
    assert calls == [35]

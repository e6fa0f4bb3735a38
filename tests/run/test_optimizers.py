"""Optimizers are torch's, and Adam's fused kernel on the CPU is its algorithm."""

import pytest
import torch

from attar.run import Adam
from attar.run.optimizers import AdamW


def walked(optimizer, steps=20):
    """Parameters behind steps down a bowl."""
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = p.detach() ** 3 - 0.1
        optimizer.step()
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


def parameters(dtype):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng, dtype=dtype).requires_grad_() for shape in ((4, 3), (3,), ())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("made", [Adam(lr=0.1, beta1=0.5), AdamW(lr=0.1, weight_decay=0.3)], ids=lambda o: o.kind)
def test_the_fused_kernel_walks_as_adam_does(made, dtype):
    ours = made.build(parameters(dtype))
    assert all(group["fused"] for group in ours.param_groups)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[made.kind]
    more = {"weight_decay": made.weight_decay} if made.kind == "adamw" else {}
    theirs = kind(parameters(dtype), made.lr, betas=(made.beta1, made.beta2), eps=made.eps, foreach=False, **more)
    for got, expected in zip(walked(ours), walked(theirs), strict=True):
        torch.testing.assert_close(got, expected)


def test_adamw_spares_what_has_one_dimension_when_asked_to():
    matrix, bias, number = walked(AdamW(lr=0.1, weight_decay=0.3, decays="weights").build(parameters(torch.float64)))
    plain = walked(Adam(lr=0.1).build(parameters(torch.float64)))
    assert not torch.allclose(matrix, plain[0])
    torch.testing.assert_close((bias, number), tuple(plain[1:]))


def test_other_devices_choose_for_themselves():
    optimizer = Adam().build([torch.zeros(2, device="meta", requires_grad=True)])
    assert optimizer.param_groups[0]["fused"] is None

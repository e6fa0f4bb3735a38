"""Gradient accumulation: backward calls before a step add up to the large batch, with whatever the step does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attar.run import SGD, AdamW, Cosine, Decay, log

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
Y = torch.randn(12, 2, generator=torch.Generator().manual_seed(2))


def train(run, parts, optimizer, clip=None):
    """Five steps on a batch of 12 rows that is sent through in `parts` unequal parts, each divided by 12."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    learner = run.learner(
        "net", module, optimizer, schedule=Cosine(warmup=2), steps=5, ema={"slow": Decay(decay=0.5)}, clip=clip
    )
    for _ in run.loop("fit", 5):
        start = 0
        for length in parts:
            rows = slice(start, start + length)
            start += length
            error = (module(X[rows].double()) - Y[rows].double()).square().sum() / len(X)
            size = 0.01 * (length / len(X)) * sum(p.square().sum() for p in module.parameters())
            run.backward({"error": error, "size": size}, learner)
        learner.step()
    assert learner.steps == 5
    averages = learner.ema["slow"].parameters()
    return torch.cat([p.detach().flatten() for p in [*module.parameters(), *averages]])


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.3, momentum=0.9, weight_decay=0.1), AdamW(lr=0.05)])
def test_parts_of_a_batch_give_what_the_whole_batch_gives(start, tmp_path, optimizer, clip):
    with start("whole") as run:
        whole = train(run, [12], optimizer, clip)
    with start("parts") as run:
        parts = train(run, [1, 4, 7], optimizer, clip)
    assert (parts - whole).abs().max() < 1e-6
    records = [log.read(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    for mine, theirs in zip(*records, strict=True):
        assert mine["net/error"] == pytest.approx(theirs["net/error"], rel=1e-6)
        assert mine["net/size"] == pytest.approx(theirs["net/size"], rel=1e-6)


def test_a_part_that_is_left_out_is_noticed(start):
    with start("whole") as run:
        whole = train(run, [12], SGD(lr=0.3))
    with start("parts") as run:
        parts = train(run, [4, 7], SGD(lr=0.3))
    assert (parts - whole).abs().max() > 1e-3

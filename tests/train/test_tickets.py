"""Lottery tickets: what is taken away, where the rest starts, and that zeros stay zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from attar.errors import RecipeError
from attar.train.tickets import tickets


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def trainer(starts):
    def train(module):
        starts.append([layer.weight.detach().clone() for layer in (module[0], module[2])])
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), torch.arange(16) % 4).backward()
            optimizer.step()

    return train


def test_the_smallest_weights_of_all_layers_go_and_the_rest_starts_over():
    start, starts = network(), []
    before = copy.deepcopy(start.state_dict())
    found = list(tickets(start, trainer(starts), rounds=3, share=0.4))
    assert [ticket.kept for ticket in found] == [1.0, 30 / 50, 18 / 50]
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    for number, ticket in enumerate(found):
        for layer, weight in zip(("0.weight", "2.weight"), starts[number], strict=True):
            assert torch.equal(weight, before[layer] * ticket.masks[layer])  # back to the start
            assert not ticket.module.state_dict()[layer][ticket.masks[layer] == 0].any()  # and zeros stay
        assert set(ticket.module.state_dict()) == set(before)
    first, second = found[:2]
    sizes = {name: first.module.state_dict()[name].abs() for name in first.masks}
    kept = torch.cat([sizes[name][second.masks[name] > 0] for name in sizes])
    gone = torch.cat([sizes[name][second.masks[name] == 0] for name in sizes])
    assert kept.min() >= gone.max()
    assert all((found[2].masks[name] <= found[1].masks[name]).all() for name in sizes)  # nothing comes back


def test_shares_that_leave_all_or_nothing_are_refused():
    for share in (0.0, 1.0):
        with pytest.raises(RecipeError, match="between 0 and 1"):
            next(tickets(network(), trainer([]), rounds=1, share=share))

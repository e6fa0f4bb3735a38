"""Attacks: they stay in their box and in [0, 1], do what can be done to a linear classifier, and add up."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from attar.errors import DataError
from attar.metrics.attacks import Attack, SquareSearch, attackable, margins, robust_accuracy, strong_attacks


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def some(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def linear(seed=1, classes=2, pixels=16):
    module = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    with torch.no_grad():
        module[1].weight.copy_(some(classes, pixels, seed=seed) - 0.5)
        module[1].bias.zero_()
    return module


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
@pytest.mark.parametrize("start", ["near", "anywhere"])
def test_gradient_ascent_finds_the_worst_corner_of_a_linear_classifier(loss, start):
    module, pixels, labels = linear(), 0.3 + 0.4 * some(5, 1, 4, 4), torch.tensor([0, 1, 0, 1, 1])
    attack = Attack(radius=0.1, step=0.05, steps=12, loss=loss, start=start)
    attacked = attack(module, pixels, labels, torch.Generator().manual_seed(0))
    slope = (module[1].weight[0] - module[1].weight[1]).detach().sign().reshape(1, 4, 4)
    sign = torch.where(labels == 0, -1.0, 1.0)[:, None, None, None]
    torch.testing.assert_close(attacked, pixels + 0.1 * sign * slope)
    assert not attacked.requires_grad


def test_attacks_stay_in_the_box_and_among_pixels():
    module, pixels, labels = linear(classes=3), some(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    for attack in (Attack(radius=0.2, step=0.3, steps=3, start="anywhere"), SquareSearch(radius=0.2, queries=20)):
        attacked = attack(module, pixels, labels, torch.Generator().manual_seed(0))
        assert float((attacked - pixels).abs().max()) <= 0.2 + 1e-6
        assert float(attacked.min()) >= 0
        assert float(attacked.max()) <= 1
        assert (margins(module(attacked), labels) <= margins(module(pixels), labels)).float().mean() > 0.8


def test_more_queries_leave_less_margin():
    module, pixels, labels = linear(classes=3, pixels=64), some(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    found = []
    for queries in (1, 20, 200):
        attacked = SquareSearch(radius=0.1, queries=queries)(module, pixels, labels, torch.Generator().manual_seed(0))
        found.append(float(margins(module(attacked), labels).detach().mean()))
    assert found[0] > found[1] > found[2]


def test_a_margin_is_to_the_largest_other():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert margins(logits, torch.tensor([1, 0])).tolist() == [1.0, -2.0]


def test_a_picture_must_withstand_every_attack():
    module, pixels = linear(), 0.5 + 0.2 * (some(40, 1, 4, 4) - 0.5)
    labels = module(pixels).argmax(1)
    labels[:10] = 1 - labels[:10]  # wrong from the start

    def right(*attacks):
        return robust_accuracy(module, pixels, labels, attacks, chunk=16)

    assert right() == 0.75
    weak, strong = Attack(radius=0.01, step=0.01, steps=2), Attack(radius=0.05, step=0.02, steps=8)
    exact = margins(module(pixels), labels) - 0.05 * (module[1].weight[0] - module[1].weight[1]).abs().sum()
    assert right(strong) == pytest.approx(float((exact > 0).double().mean()))
    assert right(weak, strong) == right(strong) < right(weak)
    with pytest.raises(DataError, match="no sample"):
        robust_accuracy(module, pixels[:0], labels[:0], [])


def test_the_strong_attacks_reach_the_whole_box_in_both_losses():
    attacks = strong_attacks(0.1, steps=50, restarts=2)
    assert [getattr(a, "loss", "search") for a in attacks] == ["cross-entropy", "margin"] * 2 + ["search"]
    assert all(a.step * a.steps >= 0.2 for a in attacks[:4])
    assert {a.radius for a in attacks} == {0.1}


def test_a_network_is_attacked_in_evaluation_mode_and_keeps_its_gradients():
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2)).train()
    pixels, labels = some(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    with attackable(module, lambda x: (x - 0.5) / 0.25) as logits:
        assert not module.training
        torch.testing.assert_close(logits(pixels), module((pixels - 0.5) / 0.25))
        Attack(radius=0.1)(logits, pixels, labels, torch.Generator())
    assert module.training
    assert module[0].num_batches_tracked == 0
    assert all(p.grad is None for p in module.parameters())


def test_the_papers_defaults():
    attack = Attack()
    assert (attack.radius, attack.step, attack.steps) == (8 / 255, 2 / 255, 10)
    assert dataclasses.asdict(attack)["start"] == "near"

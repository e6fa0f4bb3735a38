"""Pairs ranked by two scorers: by hand, at the fixed point, and by the rules for real samples."""

import math

import pytest
import torch

from attar.errors import RecipeError
from attar.losses.preference import pairwise_preference


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


EXPERT, PROXY = (0.3, -1.0, 0.8), (0.1, 0.2, -0.4)


def test_three_candidates_make_three_pairs():
    found = pairwise_preference(torch.tensor([EXPERT]), torch.tensor([PROXY]))
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(kl(sigmoid(EXPERT[i] - EXPERT[j]), sigmoid(PROXY[i] - PROXY[j])) for i, j in pairs)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_scores_that_differ_by_a_constant_rank_alike_and_only_the_proxy_learns():
    expert = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_(True)
    proxy = (expert + 2.0).detach().requires_grad_(True)
    loss = pairwise_preference(expert, proxy).sum()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    loss.backward()
    assert expert.grad is None
    assert proxy.grad.abs().max() < 1e-12


def test_softened_labels_touch_pairs_of_the_real_sample_that_it_loses():
    both = torch.tensor([EXPERT]), torch.tensor([PROXY])
    found = pairwise_preference(*both, real=0, against_real="softened").item()  # real beats 1, loses to 2
    expected = kl(sigmoid(1.3), sigmoid(-0.1)) + kl(0.5, sigmoid(0.5)) + kl(sigmoid(-1.8), sigmoid(0.6))
    assert found == pytest.approx(expected, abs=1e-6)
    last = pairwise_preference(*both, real=2, against_real="softened").item()  # real beats both: nothing changes
    assert last == pytest.approx(pairwise_preference(*both).item(), abs=1e-6)


def test_where_the_real_sample_wins_its_pairs_are_cross_entropies():
    found = pairwise_preference(torch.tensor([EXPERT]), torch.tensor([PROXY]), real=2, against_real="wins").item()
    expected = kl(sigmoid(1.3), sigmoid(-0.1)) - math.log(sigmoid(-0.5)) - math.log(sigmoid(-0.6))
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_cannot_be_ranked_is_refused():
    scores = torch.zeros(2, 3)
    for call in (
        lambda: pairwise_preference(scores, scores[:, :2]),
        lambda: pairwise_preference(scores[:, :1], scores[:, :1]),
        lambda: pairwise_preference(scores, scores, real=3),
        lambda: pairwise_preference(scores, scores, real=0, against_real="loses"),
    ):
        with pytest.raises(RecipeError):
            call()

"""What the claim of rCM measures: distance to the next centre, and how true the weights of modes are."""

import math

import pytest
import torch

from attar.claims.rcm import LONGER, RING, RegularizedConsistencyClaim, distance, divergence


def test_true_samples_are_a_rayleigh_mean_away_and_their_weights_are_true():
    x = RING.sample(20_000, torch.Generator().manual_seed(0))
    assert distance(x) == pytest.approx(math.sqrt(math.pi / 2), abs=0.02)
    assert divergence(x) < 2e-3


def test_even_weights_and_collapse_are_told():
    even = RING.means.repeat(1000, 1)
    shares = RING.weights / RING.weights.sum()
    assert divergence(even) == pytest.approx((shares * (shares * 8).log()).sum().item(), rel=1e-2)
    assert divergence(RING.means[:1].repeat(1000, 1)) > 3
    small = even + torch.tensor([0.05, 0.0])  # half a deviation: as bad as what is as many times too far
    assert distance(small) == pytest.approx(math.pi / 2 / 0.5, rel=1e-3)
    assert distance(even + torch.tensor([0.3, 0.0])) == pytest.approx(3.0, rel=1e-3)


def test_scm_gets_the_updates_that_score_distillation_costs():
    """2.5 predictions of a roll-out, two scores' answers, and two updates of the fake score with a roll-out each."""
    passes = 4 + 1
    assert pytest.approx((passes + (2.5 + 2 + 1) + 2 * (2.5 + 1 + 1)) / passes) == LONGER
    claim = RegularizedConsistencyClaim("verdict", "ring")
    plain, longer = (claim.recipe(name, {"warmup": 0.2, "lr": 1e-3}) for name in ("scm", "scm, equal compute"))
    assert (plain.train.steps, plain.warmup, plain.score) == (1000, 200, 0.0)
    assert (longer.train.steps, longer.warmup) == (3900, 780)
    alone = claim.recipe("dmd", {"fake_lr": 1e-3, "lr": 1e-3})
    assert (alone.consistency, alone.warmup, alone.score) == (0.0, 0, 1.0)

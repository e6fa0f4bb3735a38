"""DD-Ranking's scores: closed forms, limits and directions, in fractions."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from attar.errors import RecipeError
from attar.metrics import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    rank_correlation,
)


def test_differences_by_hand():
    assert hard_label_recovery(0.9, 0.6) == pytest.approx(0.3)
    assert hard_label_recovery(0.6, 0.9) == pytest.approx(-0.3)
    assert improvement_over_random(0.7, 0.55) == pytest.approx(0.15)


def test_scores_by_hand():
    alpha = 0.25 * 0.4 - 0.75 * 0.2
    expected = (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(0.2, 0.4, weight=0.25) == pytest.approx(expected)
    beta = 0.25 * 0.4 + 0.75 * -0.2
    expected = (math.exp(beta) - math.exp(-1)) / (math.e - math.exp(-1))
    assert augmentation_robust_score(0.4, -0.2, weight=0.25) == pytest.approx(expected)


def test_the_score_of_no_gain_is_the_cards():
    assert label_robust_score(0.0, 0.0) == pytest.approx(0.269, abs=5e-4)
    assert augmentation_robust_score(0.0, 0.0) == label_robust_score(0.0, 0.0)


def test_scores_fill_zero_to_one():
    assert label_robust_score(1.0, -1.0) == pytest.approx(0.0)
    assert label_robust_score(-1.0, 1.0) == pytest.approx(1.0)
    assert augmentation_robust_score(-1.0, -1.0) == pytest.approx(0.0)
    assert augmentation_robust_score(1.0, 1.0) == pytest.approx(1.0)


def test_recovering_less_or_improving_less_scores_less():
    assert label_robust_score(0.3, 0.1) < label_robust_score(0.2, 0.1) < label_robust_score(0.2, 0.2)
    assert augmentation_robust_score(0.1, 0.1) < augmentation_robust_score(0.2, 0.1)
    assert augmentation_robust_score(0.1, 0.1) < augmentation_robust_score(0.1, 0.2)


def test_a_weight_of_one_or_nothing_leaves_a_term_out():
    assert label_robust_score(0.9, 0.2, weight=1.0) == label_robust_score(-0.5, 0.2, weight=1.0)
    assert label_robust_score(0.3, 0.9, weight=0.0) == label_robust_score(0.3, -0.9, weight=0.0)
    assert augmentation_robust_score(0.2, 0.9, weight=1.0) == augmentation_robust_score(0.2, -0.9, weight=1.0)


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: hard_label_recovery(85.0, 60.0), "divide percent by 100"),
        (lambda: improvement_over_random(0.5, float("nan")), "between 0 and 1"),
        (lambda: label_robust_score(25.0, 0.0), "divide points by 100"),
        (lambda: augmentation_robust_score(0.0, -12.0), "divide points by 100"),
        (lambda: label_robust_score(0.1, 0.1, weight=2.0), "a weight is between 0 and 1"),
    ],
)
def test_percent_and_other_mistakes_are_refused(call, hint):
    with pytest.raises(RecipeError, match=hint):
        call()


def test_rank_correlation_is_spearmans():
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        one, other = torch.randint(0, 6, (2, 12), generator=rng).tolist()  # with ties
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) is None


@pytest.mark.parametrize(("one", "other"), [([1, 2], [1, 2, 3]), ([1], [1])])
def test_rank_correlation_needs_pairs(one, other):
    with pytest.raises(RecipeError, match="two or more pairs"):
        rank_correlation(one, other)

"""DD-Ranking's scores: what a distilled set's images are worth, apart from its labels and its augmentation.

And rank correlation, for whether a small set tells good networks from bad ones as all the data do.

All accuracies are fractions in [0, 1], and so all scores are numbers of known range: the released code feeds percent
into the exponentials, and its scores are not comparable with these (DD-Ranking 2025, arXiv 2505.13300).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from attar.errors import RecipeError


def hard_label_recovery(full: float, synthetic: float) -> float:
    """Return HLR = accuracy on all real data − accuracy on the synthetic set, both with hard labels; lower is better.

    Raises:
        RecipeError: an accuracy outside [0, 1].
    """
    return _fraction("full", full) - _fraction("synthetic", synthetic)


def improvement_over_random(synthetic: float, random: float) -> float:
    """Return IOR = accuracy on the synthetic set − accuracy on a random subset of its size; higher is better.

    Both with the same labels, loss and augmentation, and with learning rates chosen alike.

    Raises:
        RecipeError: an accuracy outside [0, 1].
    """
    return _fraction("synthetic", synthetic) - _fraction("random", random)


def label_robust_score(recovery: float, improvement: float, weight: float = 0.5) -> float:
    """Return LRS in [0, 1]: (e^α − e^−1) / (e − e^−1) with α = w · IOR − (1 − w) · HLR.

    `recovery` is HLR with hard labels, `improvement` IOR with the method's own labels, `weight` w.

    >>> round(label_robust_score(0.0, 0.0), 3)  # all recovered, nothing gained over random
    0.269

    Raises:
        RecipeError: a difference outside [-1, 1], or a weight outside [0, 1].
    """
    w = _weight(weight)
    return _score(w * _difference("improvement", improvement) - (1 - w) * _difference("recovery", recovery))


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """Return ARS in [0, 1]: (e^β − e^−1) / (e − e^−1) with β = γ · IOR_augmented + (1 − γ) · IOR_plain.

    `augmented` and `plain` are the improvements over random with the method's augmentation and with none, `weight` γ.

    Raises:
        RecipeError: a difference outside [-1, 1], or a weight outside [0, 1].
    """
    gamma = _weight(weight)
    return _score(gamma * _difference("augmented", augmented) + (1 - gamma) * _difference("plain", plain))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's ρ in [-1, 1]: the correlation of ranks, equal values sharing the mean of theirs.

    None where either has the same value throughout, so that there is no order to agree with.

    >>> rank_correlation([0.1, 0.2, 0.9], [3.0, 5.0, 4.0])
    0.5

    Raises:
        RecipeError: they are not equally many, or fewer than two.
    """
    if len(one) != len(other) or len(one) < 2:
        raise RecipeError(f"ranks are compared of two or more pairs of values; got {len(one)} and {len(other)} values")
    first, second = _ranks(one), _ranks(other)
    middle = (len(one) + 1) / 2
    shared = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    spread = math.sqrt(sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second))
    return shared / spread if spread else None


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Kendall's τ_b in [-1, 1]: pairs in the same order less pairs in the other, over the pairs without ties.

    (n_same − n_other) / √(n_1 n_2), n_1 and n_2 the pairs that differ in one and in the other. None where either has
    the same value throughout.

    >>> round(kendall_tau([0.1, 0.2, 0.9], [3.0, 5.0, 4.0]), 4)
    0.3333

    Raises:
        RecipeError: they are not equally many, or fewer than two.
    """
    if len(one) != len(other) or len(one) < 2:
        raise RecipeError(f"ranks are compared of two or more pairs of values; got {len(one)} and {len(other)} values")
    order = [
        ((a > c) - (a < c), (b > d) - (b < d))
        for number, (a, b) in enumerate(zip(one, other, strict=True))
        for c, d in zip(one[:number], other[:number], strict=True)
    ]
    spread = sum(x != 0 for x, _ in order) * sum(y != 0 for _, y in order)
    return sum(x * y for x, y in order) / math.sqrt(spread) if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Return ranks from 1 up, the mean of them for equal values."""
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]


def _score(alpha: float) -> float:
    """Return an exponential of α in [-1, 1], scaled to [0, 1]."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        hint = "; divide percent by 100" if 1 < value <= 100 else ""
        raise RecipeError(f"the accuracy '{name}' is a fraction between 0 and 1; got {value}{hint}")
    return value


def _difference(name: str, value: float) -> float:
    if not -1 <= value <= 1:
        hint = "; divide points by 100" if 1 < abs(value) <= 100 else ""
        raise RecipeError(f"'{name}' is a difference of fractions, between -1 and 1; got {value}{hint}")
    return value


def _weight(value: float) -> float:
    if not 0 <= value <= 1:
        raise RecipeError(f"a weight is between 0 and 1; got {value}")
    return value

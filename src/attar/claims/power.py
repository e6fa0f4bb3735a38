"""How many seeds a claim needs: power of the one-sample t test, from the spread seen on tuning seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from attar.claims.verdict import CONFIDENCE
from attar.errors import RecipeError

POWER = 0.9  # asked of every claim at the effect it expects
MOST_SEEDS = 1000  # more than this is a wrong plan, not a number of seeds


def power(effect: float, sigma: float, n: int, confidence: float = CONFIDENCE) -> float:
    """Return the probability that the t interval of `n` differences lies above zero.

    With T a noncentral t variable of n - 1 degrees of freedom and noncentrality effect · √n / sigma, this is
    P(T > t(1 - (1 - confidence)/2, n - 1)). For `not-worse`, `effect` is the expected difference plus the margin.

    Args:
        effect: true mean difference.
        sigma: standard deviation of one paired difference, above 0 (0 gives certainty).
        n: seeds, at least 2.
        confidence: of the two-sided interval.
    """
    from scipy import stats

    if n < 2:
        raise RecipeError(f"power needs at least two seeds, got {n}")
    if sigma == 0:
        return float(effect > 0)
    critical = stats.t.ppf(0.5 + confidence / 2, n - 1)
    chance = float(stats.nct.sf(critical, n - 1, effect * math.sqrt(n) / sigma))
    # scipy's noncentral t answers NaN where the noncentrality is huge: the two curves do not overlap there.
    return chance if math.isfinite(chance) else float(effect > 0)


def seeds_needed(effect: float, sigma: float, wanted: float = POWER, confidence: float = CONFIDENCE) -> int | None:
    """Return the smallest number of seeds (at least 2) with the wanted power; none if 1000 do not reach it."""
    return next((n for n in range(2, MOST_SEEDS + 1) if power(effect, sigma, n, confidence) >= wanted), None)


def spread(differences: Sequence[float]) -> float:
    """Return the standard deviation (n - 1) of the paired differences seen on tuning seeds."""
    if len(differences) < 2:
        raise RecipeError(f"a spread needs at least two tuning seeds, got {len(differences)}")
    return statistics.stdev(differences)

"""The verdict rule: from paired differences to `holds`, `fails` or `inconclusive`. Nobody writes a verdict by hand.

Everything here is a pure function of numbers. What the words mean, with `[L, U]` Student's t interval of the mean
paired difference (positive as claimed) and `delta` the smallest effect that counts, or the margin:

| form | holds | fails |
|---|---|---|
| `superior` | `L > 0` and `mean >= delta` | `U < delta`: reversed (`U < 0`), too small (`L > 0`), else absent |
| `not-worse` | `L > -delta` | `U < -delta`: worse |
| `exact` | `abs(difference) <= delta` | otherwise: off |

Whatever neither holds nor fails is `inconclusive`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from attar.errors import RecipeError, did_you_mean

Form = Literal["superior", "not-worse", "exact"]
Scale = Literal["difference", "log-ratio"]
Word = Literal["holds", "fails", "inconclusive"]

CONFIDENCE = 0.95  # of the two-sided interval when the seeds are looked at once
CONFIDENCE_OF_TWO_LOOKS = 0.975  # of both intervals when a file allows an extension: the two errors add up to 2.5 %


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the rule says about one contrast, and the numbers it said it from."""

    verdict: Word
    reason: str  # "" when it holds; "reversed", "too small", "absent", "worse", "off", "interval too wide", …
    form: Form
    effect: float  # mean paired difference (or log ratio), positive as claimed
    interval: tuple[float, float]  # of the mean; both ends are the effect for `exact`
    confidence: float  # of the interval, two-sided; 1 for `exact`
    p: float | None  # one-sided, of "no better than zero" (`not-worse`: than -delta); none for `exact`
    delta: float
    n: int  # seeds


def t_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Student's t interval of the mean: mean ± t(1 - (1 - confidence)/2, n - 1) · s / √n.

    Args:
        differences: at least two finite numbers, one a seed.
        confidence: two-sided coverage, between 0 and 1.

    Raises:
        RecipeError: fewer than two differences, or one that is not finite.
    """
    from scipy import stats

    mean, error, n = _mean_and_error(differences)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
    return mean - half, mean + half


def one_sided_p(differences: Sequence[float], null: float = 0.0) -> float:
    """Return the probability of a mean at least this high if the true mean were `null` (one-sided t test)."""
    from scipy import stats

    mean, error, n = _mean_and_error(differences)
    if error == 0:  # no spread at all: the t statistic is ±∞, or 0/0
        return 0.5 if mean == null else float(mean < null)
    return float(stats.t.sf((mean - null) / error, n - 1))


def verdict(form: Form, differences: Sequence[float], delta: float, *, looks: int = 1) -> Verdict:
    """Judge one contrast from its paired differences.

    Args:
        form: `superior`, `not-worse` (by the margin `delta`) or `exact` (one difference against the tolerance `delta`).
        differences: one a seed, positive as claimed; exactly one for `exact`.
        delta: smallest effect that counts, margin or tolerance, in the unit of the differences.
        looks: 2 when the claim file allows an extension to 3n seeds. Both looks, the first included, then use 97.5 %
            intervals, and p is doubled, so that a claim that may look twice errs no more often than one that may not.

    Raises:
        RecipeError: unknown form, too few or non-finite differences, a negative `delta`, or more than two looks.
    """
    if form not in get_args(Form):
        raise RecipeError(
            f"unknown form '{form}'{did_you_mean(form, get_args(Form))} Forms: {', '.join(get_args(Form))}"
        )
    if not delta >= 0:
        raise RecipeError(
            f"delta is an effect in the claimed direction, a margin or a tolerance: at least 0, got {delta}"
        )
    if form == "exact":
        return _exact(differences, delta)
    if looks not in {1, 2}:
        raise RecipeError(f"the rule knows one look or two (an extension to 3n seeds), got {looks}")
    confidence = CONFIDENCE if looks == 1 else CONFIDENCE_OF_TWO_LOOKS
    low, high = t_interval(differences, confidence)
    effect = math.fsum(differences) / len(differences)
    null = 0.0 if form == "superior" else -delta
    word, reason = _superior(low, high, effect, delta) if form == "superior" else _not_worse(low, high, delta)
    return Verdict(
        verdict=word,
        reason=reason,
        form=form,
        effect=effect,
        interval=(low, high),
        confidence=confidence,
        p=min(1.0, looks * one_sided_p(differences, null)),
        delta=delta,
        n=len(differences),
    )


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Join several primary contrasts: the statement holds only if each holds (intersection-union test).

    It fails if one fails. The numbers are those of the contrast that decides: a failing one before an inconclusive one,
    and among equals the one with the largest p, which is also the p of the whole.

    Raises:
        RecipeError: there is no contrast.
    """
    if not verdicts:
        raise RecipeError("a statement needs at least one primary contrast")
    rank = {"holds": 0, "inconclusive": 1, "fails": 2}
    weakest = max(verdicts, key=lambda v: (rank[v.verdict], -1.0 if v.p is None else v.p))
    known = [v.p for v in verdicts if v.p is not None]
    return replace(weakest, p=max(known) if known else None)


def undecided(judged: Verdict, reason: str) -> Verdict:
    """Return the same numbers as `inconclusive`: a precondition is not met, or the budgets differ."""
    return replace(judged, verdict="inconclusive", reason=reason)


def paired_differences(
    method: Sequence[float | None],
    baseline: Sequence[float | None],
    *,
    scale: Scale = "difference",
    higher_is_better: bool = True,
    worst: float | None = None,
) -> list[float]:
    """Return one difference a seed, positive as claimed.

    `difference`: method - baseline (negated where lower is better). `log-ratio`: the natural logarithm of how many
    times the method is better, `ln(method / baseline)` or `ln(baseline / method)`, for distances, losses and times.

    Args:
        method: the metric of the method's arm, seed by seed; none or not finite means the arm diverged or timed out.
        baseline: the same seeds of the baseline's arm.
        scale: `difference` or `log-ratio`.
        higher_is_better: direction of the metric.
        worst: the metric's worst admissible value; it stands in for an arm that diverged or timed out.

    Raises:
        RecipeError: different numbers of seeds, no `worst` where one is needed, or a value ≤ 0 under a logarithm.
    """
    if len(method) != len(baseline):
        raise RecipeError(
            f"paired seeds need both arms: {len(method)} values of the method, {len(baseline)} of the baseline"
        )
    sign = 1.0 if higher_is_better else -1.0
    pairs = [(_admissible(m, worst), _admissible(b, worst)) for m, b in zip(method, baseline, strict=True)]
    if scale == "difference":
        return [sign * (m - b) for m, b in pairs]
    if scale != "log-ratio":
        raise RecipeError(f"unknown scale '{scale}'{did_you_mean(scale, get_args(Scale))}")
    if any(value <= 0 for pair in pairs for value in pair):
        raise RecipeError("a log ratio needs values above zero; use the scale 'difference' for this metric")
    return [sign * math.log(m / b) for m, b in pairs]


def _superior(low: float, high: float, effect: float, delta: float) -> tuple[Word, str]:
    if low > 0 and effect >= delta:
        return "holds", ""
    if high < delta:
        return "fails", "reversed" if high < 0 else "too small" if low > 0 else "absent"
    return "inconclusive", "interval reaches both sides" if low <= 0 else "above zero, but not clearly below delta"


def _not_worse(low: float, high: float, margin: float) -> tuple[Word, str]:
    if low > -margin:
        return "holds", ""
    return ("fails", "worse") if high < -margin else ("inconclusive", "interval reaches both sides")


def _exact(differences: Sequence[float], tolerance: float) -> Verdict:
    if len(differences) != 1 or not math.isfinite(differences[0]):
        raise RecipeError(f"an exact claim is computed once and gives one finite number, got {list(differences)}")
    off = differences[0]
    word: Word = "holds" if abs(off) <= tolerance else "fails"
    return Verdict(
        verdict=word,
        reason="" if word == "holds" else "off",
        form="exact",
        effect=off,
        interval=(off, off),
        confidence=1.0,
        p=None,
        delta=tolerance,
        n=1,
    )


def _mean_and_error(differences: Sequence[float]) -> tuple[float, float, int]:
    """Return mean, standard error and count."""
    n = len(differences)
    if n < 2:
        raise RecipeError(f"an interval needs at least two paired seeds, got {n}")
    if not all(math.isfinite(d) for d in differences):
        raise RecipeError("a difference is not finite; a diverged arm counts with the metric's worst admissible value")
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    return mean, math.sqrt(variance / n), n


def _admissible(value: float | None, worst: float | None) -> float:
    if value is not None and math.isfinite(value):
        return value
    if worst is None:
        raise RecipeError(
            "an arm diverged or timed out, and the contrast names no 'worst' admissible value of its metric"
        )
    return worst

"""From the outcomes of jobs to what a claim says: contrasts, power, budgets, preconditions."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attar.claims import power
from attar.claims.claim import Claim, Contrast, Precondition
from attar.claims.jobs import Outcome
from attar.claims.meter import mean_costs, unequal
from attar.claims.tuning import judged_by
from attar.claims.verdict import (
    CONFIDENCE,
    CONFIDENCE_OF_TWO_LOOKS,
    Verdict,
    all_of,
    paired_differences,
    t_interval,
    undecided,
    verdict,
)

Outcomes = Mapping[str, Sequence[Outcome]]  # arm to its outcomes in the order of the seeds
FLOOR_RATIO = 5  # a baseline must lie this many times above the metric's floor (reference against reference)


@dataclass(frozen=True)
class Judgement:
    """The verdict, and the verdict of each primary contrast."""

    whole: Verdict
    parts: tuple[Verdict, ...]


def judge(cls: type[Claim], outcomes: Outcomes, trials: Mapping[str, int]) -> Judgement:
    """Apply the verdict rule to the outcomes of verdict seeds.

    Unequal budgets, an unmet precondition, or a baseline too near its metric's floor turn any verdict into
    `inconclusive`.
    """
    looks = 2 if cls.may_extend else 1
    parts = tuple(_judge_one(contrast, outcomes, looks) for contrast in cls.contrasts())
    whole = all_of(parts)
    why = hindrance(cls, outcomes, trials)
    return Judgement(undecided(whole, why) if why else whole, parts)


def hindrance(cls: type[Claim], outcomes: Outcomes, trials: Mapping[str, int]) -> str:
    """Return why these outcomes allow no verdict, or ""."""
    pairs = [(c.method, c.baseline) for c in cls.contrasts() if c.baseline is not None and c.form != "exact"]
    if pairs:
        reason = unequal(currencies(outcomes, trials), pairs, cls.currency)
        if reason:
            return f"budgets: {reason}"
    if cls.precondition is not None:
        found = measured(cls.precondition, outcomes)
        if not found >= cls.precondition.at_least:
            return f"precondition not met: {cls.precondition.says} ({found:.4g} of {cls.precondition.at_least:g})"
    return near_floor(cls, outcomes)


def near_floor(cls: type[Claim], outcomes: Outcomes) -> str:
    """Return which baseline lies under five times its metric's floor, or ""."""
    return next(filter(None, (_too_near_floor(contrast, outcomes) for contrast in cls.contrasts())), "")


def measured(precondition: Precondition, outcomes: Outcomes) -> float:
    """Return the mean paired difference of a precondition."""
    return statistics.fmean(differences(precondition.contrast, outcomes))


def differences(contrast: Contrast, outcomes: Outcomes) -> list[float]:
    """Return the paired differences of a contrast, positive as claimed; one number for an exact one."""
    ours = values(outcomes[contrast.method], contrast.metric)
    theirs: list[float | None]
    if contrast.baseline is not None:
        theirs = values(outcomes[contrast.baseline], contrast.metric)
    else:
        theirs = [contrast.target] * len(ours)
    if contrast.form == "exact":
        ours, theirs = ours[:1], theirs[:1]
    return paired_differences(
        ours, theirs, scale=contrast.scale, higher_is_better=contrast.higher_is_better, worst=contrast.worst
    )


def values(outcomes: Sequence[Outcome], metric: str) -> list[float | None]:
    """Return a metric seed by seed; none for an arm that diverged or timed out.

    Raises:
        KeyError: an arm that finished did not return the metric.
    """
    return [o["metrics"][metric] if o["status"] == "finished" else None for o in outcomes]


def currencies(outcomes: Outcomes, trials: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Return the mean costs of each arm in every currency."""
    return {
        arm: mean_costs([{**o["costs"], "seconds": o["seconds"], "trials": trials[arm]} for o in some])
        for arm, some in outcomes.items()
    }


def planned(cls: type[Claim], outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return, for each seeded primary contrast, the spread on tuning seeds, its power, and the seeds needed."""
    confidence = CONFIDENCE_OF_TWO_LOOKS if cls.may_extend else CONFIDENCE
    rows = []
    for contrast in cls.contrasts():
        if contrast.form == "exact":
            continue
        found = differences(contrast, outcomes)
        sigma = power.spread(found)
        distance = (contrast.expects or 0.0) + ((contrast.delta or 0.0) if contrast.form == "not-worse" else 0.0)
        rows.append(
            {
                "contrast": contrast.statement(),
                "sigma": sigma,
                "seen": statistics.fmean(found),
                "expects": contrast.expects,
                "seeds": cls.seeds,
                "power": power.power(distance, sigma, cls.seeds, confidence),
                "needed": power.seeds_needed(distance, sigma, confidence=confidence),
            }
        )
    return rows


def described(contrast: Contrast, outcomes: Outcomes, judged: Verdict | None = None) -> dict[str, Any]:
    """Return a contrast as JSON values; a secondary one has an effect and an interval, and no verdict."""
    stated = {name: value for name, value in asdict(contrast).items() if value is not None}
    if judged is not None:
        numbers = {**asdict(judged), "interval": list(judged.interval)}
        return {"statement": contrast.statement(), **stated, **numbers}
    found = differences(contrast, outcomes)
    interval = list(t_interval(found)) if len(found) > 1 else None
    return {"statement": contrast.statement(), **stated, "effect": statistics.fmean(found), "interval": interval}


def by_copy(cls: type[Claim], outcomes: Outcomes) -> dict[str, float]:
    """Return the mean difference of the first primary contrast for each copy of the shared stages."""
    if cls.copies < 2:
        return {}
    contrast = cls.contrasts()[0]
    dealt: dict[str, list[float]] = {}
    for outcome, difference in zip(outcomes[contrast.method], differences(contrast, outcomes), strict=False):
        dealt.setdefault(str(outcome["seed"] % cls.copies), []).append(difference)
    return {copy: statistics.fmean(found) for copy, found in sorted(dealt.items())}


def arm_records(cls: type[Claim], outcomes: Outcomes) -> dict[str, Any]:
    """Return every arm as JSON values.

    `arms` holds each arm's mean in the metric it is judged by, with `ARM_std` over seeds beside (None for an arm that
    never finished); `measured` all metrics of every arm, likewise, and their values seed by seed.
    """
    measured = {arm: _arm_record(some) for arm, some in outcomes.items()}
    arms: dict[str, float | None] = {}
    for arm, record in measured.items():
        metric = judged_by(cls, arm).metric
        arms |= {arm: record.get(metric), f"{arm}_std": record.get(f"{metric}_std")}
    return {"arms": arms, "measured": measured}


def _arm_record(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    names = sorted({name for outcome in outcomes for name in outcome["metrics"]})
    record: dict[str, Any] = {"trial": outcomes[0]["trial"], "values": {}}
    for name in names:
        found = [outcome["metrics"].get(name) for outcome in outcomes]
        there = [value for value in found if value is not None]
        record[name] = statistics.fmean(there)
        record[f"{name}_std"] = statistics.stdev(there) if len(there) > 1 else 0.0
        record["values"][name] = found
    record["status"] = [outcome["status"] for outcome in outcomes]
    record["seconds"] = math.fsum(outcome["seconds"] for outcome in outcomes)
    return record


def _judge_one(contrast: Contrast, outcomes: Outcomes, looks: int) -> Verdict:
    delta = contrast.delta or 0.0
    return verdict(contrast.form, differences(contrast, outcomes), delta, looks=looks)


def _too_near_floor(contrast: Contrast, outcomes: Outcomes) -> str:
    """Say if the baseline's mean lies under five times the metric's floor."""
    if contrast.baseline is None:
        return ""
    some = outcomes[contrast.baseline]
    floors = [_floor(contrast.metric, outcome["metrics"]) for outcome in some if outcome["status"] == "finished"]
    known = [floor for floor in floors if floor is not None]
    reached = [value for value in values(some, contrast.metric) if value is not None]
    if not known or not reached or statistics.fmean(reached) >= FLOOR_RATIO * statistics.fmean(known):
        return ""
    return (
        f"'{contrast.baseline}' lies under {FLOOR_RATIO} times the floor of {contrast.metric}; it needs another metric"
    )


def _floor(metric: str, metrics: Mapping[str, float | None]) -> float | None:
    """Return the floor that an arm returned as `METRIC_floor`; in a number of steps, `frechet_4`, it is `frechet`'s."""
    names = (metric, re.sub(r"_\d+$", "", metric))
    return next((metrics[f"{name}_floor"] for name in names if metrics.get(f"{name}_floor") is not None), None)

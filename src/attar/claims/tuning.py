"""Tuning every arm alike: the same number of trials, on the same tuning seeds, on a validation split."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attar.claims.claim import Claim, Contrast, Grid, trials
from attar.claims.jobs import Job, Outcome, place

WIDENINGS = 3  # of a grid whose best value lies on an edge
FINALISTS = 2  # trials of an arm that run on all tuning seeds

Values = dict[str, Any]
RunJobs = Callable[[Sequence[Job], str], dict[tuple[str, int, str], Outcome]]  # (jobs, title) -> outcomes


@dataclass
class Tuned:
    """What tuning chose, and everything it looked at."""

    chosen: dict[str, Values] = field(default_factory=dict)
    table: dict[str, list[Values]] = field(default_factory=dict)  # arm to {"trial", "score", "scores", "why", "final"}
    notes: list[str] = field(default_factory=list)


def tune(cls: type[Claim], run_jobs: RunJobs, source: str, say: Callable[[str], None], *, finals: bool = True) -> Tuned:
    """Choose each arm's trial with the best mean metric over the tuning seeds.

    A best value on the edge of a numeric grid widens that grid by one value, and again while an arm of a primary
    contrast asks for it, `WIDENINGS` times at most. The other arms get as many further trials, between their best
    value and its neighbours, so that the numbers of trials stay equal. With `finals` the two best trials of an arm of a
    primary contrast then run on all tuning seeds, since what looks best on few may break on the next.
    """
    tuned = Tuned(table={arm: [] for arm in cls.arms()})
    grids = {arm: {name: list(values) for name, values in grid.items()} for arm, grid in cls.grids.items()}
    deciding = {arm for contrast in cls.contrasts() for arm in (contrast.method, contrast.baseline)}
    _try(cls, run_jobs, source, tuned, tried={arm: trials(grid) for arm, grid in grids.items()}, why="grid")
    best = {arm: _best(tuned.table[arm]) for arm in grids}
    for widening in range(WIDENINGS):
        moved = {arm: beyond(grids[arm], best[arm], cls.limits) for arm in grids}
        further = max(len(found) for arm, found in moved.items() if arm in deciding or not widening)
        if not further:
            break
        extra = {arm: _filled_up(found, grids[arm], best[arm], further) for arm, found in moved.items()}
        for arm, found in moved.items():
            if names := [name for trial in found[:further] for name in trial if trial[name] != best[arm][name]]:
                tuned.notes.append(f"the best value of '{arm}' lies on the edge of {', '.join(names)}: widened")
            if len(extra[arm]) < further:
                tried = f"{len(extra[arm])} further trials of {further}"
                tuned.notes.append(f"'{arm}' has nothing left to try: {tried}")
        _try(cls, run_jobs, source, tuned, tried=extra, why="further")
        grids = {arm: _grown(grid, extra[arm]) for arm, grid in grids.items()}
        best = {arm: _best(tuned.table[arm]) for arm in grids}
    tuned.notes += [
        f"the best value of '{arm}' still lies on an edge after widening"
        for arm, grid in grids.items()
        if beyond(grid, best[arm], cls.limits)
    ]
    tuned.chosen = best | (_final(cls, run_jobs, source, tuned, deciding) if finals else {})
    for note in tuned.notes:
        say(note)
    return tuned


def judged_by(cls: type[Claim], arm: str) -> Contrast:
    """Return the contrast whose metric tunes an arm: the first primary one it stands in, else any other."""
    further = [cls.precondition.contrast] if cls.precondition else []
    every = (*cls.contrasts(), *cls.secondary, *further)
    return next((c for c in every if arm in (c.method, c.baseline)), every[0])


def score(outcomes: Sequence[Outcome], contrast: Contrast) -> tuple[float, list[float | None]]:
    """Return the mean metric, higher is better, and the values; a lost arm counts with the worst admissible value."""
    values: list[float | None] = [outcome["metrics"].get(contrast.metric) for outcome in outcomes]
    sign = 1.0 if contrast.higher_is_better else -1.0
    worst = -math.inf if contrast.worst is None else sign * contrast.worst
    return statistics.fmean(worst if value is None else sign * value for value in values), values


def beyond(grid: Grid, best: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]) -> list[Values]:
    """Return one trial for each numeric field whose best value lies on an edge: the field moved one step beyond it."""
    found: list[Values] = []
    for name, values in grid.items():
        if not _numeric(values) or best[name] not in (min(values), max(values)):
            continue
        moved = _step_beyond(sorted(set(values)), upwards=best[name] == max(values))
        low, high = limits.get(name, (-math.inf, math.inf))
        moved = min(max(moved, low), high)
        moved = round(moved) if _whole(values) else moved
        if moved not in values:
            found.append({**best, name: moved})
    return found


def between(grid: Grid, best: Mapping[str, Any]) -> list[Values]:
    """Return trials half-way between the best value of each numeric field and its neighbours in the grid."""
    found: list[Values] = []
    for name, values in grid.items():
        if not _numeric(values):
            continue
        ordered = sorted(set(values))
        here = ordered.index(best[name])
        for neighbour in [*ordered[here + 1 : here + 2], *ordered[max(0, here - 1) : here]]:
            middle = math.sqrt(best[name] * neighbour) if _geometric(ordered) else (best[name] + neighbour) / 2
            middle = round(middle) if _whole(values) else middle
            if middle not in values:
                found.append({**best, name: middle})
    return found


def _try(
    cls: type[Claim], run_jobs: RunJobs, source: str, tuned: Tuned, *, tried: Mapping[str, list[Values]], why: str
) -> None:
    """Run trials of every arm on the first tuning seeds and add them to the table."""
    seeds = cls.tuning_seeds[: cls.trial_seeds]
    for arm, found in _scored(cls, run_jobs, source, tried, seeds).items():
        for trial, mean, values in found:
            shown = mean if math.isfinite(mean) else None
            tuned.table[arm].append({"trial": trial, "score": shown, "scores": values, "why": why})


def _final(
    cls: type[Claim], run_jobs: RunJobs, source: str, tuned: Tuned, arms: Collection[str | None]
) -> dict[str, Values]:
    """Return the better of the two best trials of each arm by all tuning seeds, if not all were tried before."""
    if cls.trial_seeds == len(cls.tuning_seeds):
        return {}
    ranked = {arm: sorted(tuned.table[arm], key=_rank, reverse=True)[:FINALISTS] for arm in cls.arms() if arm in arms}
    tried = {arm: [dict(row["trial"]) for row in rows] for arm, rows in ranked.items()}
    chosen: dict[str, Values] = {}
    for arm, found in _scored(cls, run_jobs, source, tried, cls.tuning_seeds).items():
        for row, (_, _, values) in zip(ranked[arm], found, strict=True):
            row["final"] = values
        chosen[arm] = max(found, key=lambda scored: scored[1])[0]
        if chosen[arm] != tried[arm][0]:
            tuned.notes.append(f"'{arm}': on all tuning seeds {chosen[arm]} is better than {tried[arm][0]}")
    return chosen


def _scored(
    cls: type[Claim], run_jobs: RunJobs, source: str, tried: Mapping[str, list[Values]], seeds: Sequence[int]
) -> dict[str, list[tuple[Values, float, list[float | None]]]]:
    """Run trials on seeds; return each arm's trials with their mean score and values, in their order."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    jobs = {
        arm: [
            [Job(claim=path, phase="tuning", arm=arm, seed=seed, source=source, trial=trial) for seed in seeds]
            for trial in points
        ]
        for arm, points in tried.items()
    }
    done = run_jobs([job for each in jobs.values() for some in each for job in some], f"{cls.id} tuning")
    return {
        arm: [(dict(some[0].trial), *score([done[place(job)] for job in some], judged_by(cls, arm))) for some in each]
        for arm, each in jobs.items()
    }


def _rank(row: Values) -> float:
    return -math.inf if row["score"] is None else row["score"]


def _best(table: Sequence[Values]) -> Values:
    """Return the trial with the best score, the earlier one of equals."""
    return dict(max(table, key=_rank)["trial"])


def _filled_up(found: list[Values], grid: Grid, best: Mapping[str, Any], wanted: int) -> list[Values]:
    return [*found, *between(grid, best)][:wanted]


def _grown(grid: Grid, tried: Sequence[Values]) -> dict[str, list[Any]]:
    """Return a grid with the values of further trials in their places."""
    return {
        name: sorted({*values, *(trial[name] for trial in tried)}) if _numeric(values) else list(values)
        for name, values in grid.items()
    }


def _numeric(values: Sequence[Any]) -> bool:
    return len(set(map(str, values))) > 1 and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    )


def _whole(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def _geometric(ordered: Sequence[float]) -> bool:
    """Say whether a sorted grid is spaced by ratios rather than by differences."""
    if ordered[0] <= 0:
        return False
    ratios = [b / a for a, b in itertools.pairwise(ordered)]
    gaps = [b - a for a, b in itertools.pairwise(ordered)]
    return max(ratios) / min(ratios) <= max(gaps) / min(gaps)


def _step_beyond(ordered: Sequence[float], *, upwards: bool) -> float:
    edge, inner = (ordered[-1], ordered[-2]) if upwards else (ordered[0], ordered[1])
    if _geometric(ordered):
        return edge * edge / inner
    moved = 2 * edge - inner
    return edge / 2 if ordered[0] > 0 >= moved else moved  # a grid of positive numbers stays positive

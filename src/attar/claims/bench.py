"""Benches: every arm of one rig at one budget, tuned alike, ranked with intervals. Nothing is claimed."""

from __future__ import annotations

import math
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from attar import files, ledger, results
from attar.claims.claim import PILOT_SEEDS, Claim, Contrast, Phase, Trial, trials
from attar.claims.freeze import fingerprint, jobs_hash
from attar.claims.jobs import Execute, Job, Outcome, place, run_arm, run_jobs
from attar.claims.judgement import values
from attar.claims.tuning import tune
from attar.claims.verdict import paired_differences, t_interval
from attar.claims.vision import VisionClaim
from attar.errors import RecipeError
from attar.methods.model.student import TrainStudent, parts
from attar.run import Run
from attar.train.objective import Objective

Runner = Callable[[Sequence[Job], str], dict[tuple[str, int, str], Outcome]]
WORKERS = 2
BASES = (
    "kd", "dkd", "nkd", "dist", "fitnet", "attention", "sp", "rkd", "pkt", "cc", "vid", "nst", "crd", "ofd", "reviewkd",
    "ickd", "cka", "simkd", "label-smoothing", "tf-kd", "ps-kd", "cs-kd", "byot",
)  # fmt: skip
STRENGTHS = {"label-smoothing": "smoothing", "ps-kd": "share"}  # what a strength multiplies, where not the weight
SUMS = ("kd+crd", "kd+attention", "dkd+reviewkd")


class ObjectiveBench(VisionClaim):
    """Objectives beside each other: the rig of the vision claims, 700 steps each, rate and weight tuned alike.

    An arm's `strength` multiplies what its teacher weighs in the paper (for label smoothing, ε; a share is 1 at most).
    The arm on labels alone tunes weight decay instead, so that all have equally many trials.
    """

    id = "bench-kd"
    title = "Objectives of model distillation"
    says = "nothing: which of the base objectives is worth its time"
    origin = "none"
    primary = Contrast(method="kd", baseline="labels", at="1,000 labelled images, 700 steps of 64", worst=0.1)
    expects = 0.04
    delta = 0.02
    seeds = 8
    grids: ClassVar = {
        "labels": {"lr": [0.05, 0.1], "weight_decay": [5e-4, 1.5e-3, 5e-3]},
        **{name: {"lr": [0.05, 0.1], "strength": [0.3, 1.0, 3.0]} for name in (*BASES, *SUMS)},
    }
    methods = (*BASES, "student")
    trial_seeds = 1

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Train the student of an arm and judge it."""
        splits = self.splits(run)
        shares = self.shares(run, splits.train)
        teacher = self.teacher(run, shares.seen)
        student = self.student(run, self.objective(name, trial), shares.labelled, teacher, seed=seed)
        return self.judge(splits, student)

    def objective(self, name: str, trial: Trial) -> Objective:
        """Return what an arm trains on."""
        fields: dict[str, Any] = {"student": self.net, "train": self.training(trial)}
        strength = trial.get("strength", 1.0)
        if name == "labels":
            return Objective(**fields)
        if "+" in name:
            hard = 0.1 if name.startswith("kd+") else 1.0  # the weight of the labels beside KD
            return TrainStudent(objective=parts(name), hard=hard, weight=strength, **fields)
        cls: Any = ledger.method_class(name)
        if own := STRENGTHS.get(name):
            return cls(**{own: min(1.0, getattr(cls(), own) * strength)}, **fields)
        return cls(weight=cls().weight * strength, **fields)


def rank(
    cls: type[Claim],
    *,
    seeds: int | None = None,
    data: str | None = None,
    quick: bool = False,
    workers: int = WORKERS,
    execute: Execute = run_arm,
    folder: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Tune every arm alike, run the seeds, and return the arms in the order of the mean of the first contrast's metric.

    Each row has the arm's mean with its 95 % t interval, and the paired differences to the first contrast's baseline
    (`gain`), to its method (`over_kd`) and to the best arm (`behind`), each with an interval of that one comparison: of
    twenty such intervals about one misses. With the seeds and data of the bench the result is kept in
    `results/bench/<id>.json` of a checkout, else under `ATTAR_HOME`. Jobs that are done are kept, so that a bench that
    was stopped goes on. The quick form runs every arm once in seconds and ranks nothing.

    Args:
        cls: the bench.
        seeds: number of seeds, at least 2; the bench's if not given.
        data: a source; the bench's if not given.
        quick: the quick form.
        workers: processes of one thread each.
        execute: runs a job; tests give one that is instantaneous.
        folder: where the result is kept.
        say: takes the lines that a person reads; standard error if not given.

    Raises:
        RecipeError: fewer than two seeds, or as many as reach those that tuning takes.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    count = cls.seeds if seeds is None else seeds
    if not 2 <= count <= PILOT_SEEDS.start:
        raise RecipeError(f"a bench takes 2 to {PILOT_SEEDS.start} seeds, got {count}")
    source = data or (cls.quick_source if quick else cls.source)
    where = files.home() / "claims" / f"{cls.id}-{jobs_hash(cls)[:8]}"
    if quick:
        return _glance(cls, _runner(where / "quick", execute, 1), source, where / "quick")
    run = _runner(where, execute, workers)
    tuned = tune(cls, run, source, say, finals=False)  # all arms alike, those on no side, too
    outcomes = _outcomes(cls, run, source, tuned.chosen, range(count))
    result = {
        "id": cls.id,
        "title": cls.title,
        "quick": False,
        "source": source,
        "seeds": count,
        "metrics": [contrast.metric for contrast in measured(cls)],
        "references": {"gain": cls.contrasts()[0].baseline, "over_kd": cls.contrasts()[0].method},
        "fixed": list(cls.fixed),
        "arms": ranked(cls, outcomes, tuned.chosen),
        "tuning": {"seeds": list(cls.tuning_seeds[: cls.trial_seeds]), "arms": tuned.table, "notes": tuned.notes},
        **fingerprint(cls),
    }
    if count == cls.seeds and source == cls.source:
        own = results.directory().parent / "bench" if results.in_checkout() else files.home() / "bench"
        file = (folder or own) / f"{cls.id}.json"
        files.write_json(file, result)
        say(f"written to {file}")
    return result


def _runner(where: Path, execute: Execute, workers: int) -> Runner:
    """Return what runs jobs under a title and keeps what is done."""

    def run(jobs: Sequence[Job], title: str) -> dict[tuple[str, int, str], Outcome]:
        from attar.run import signals

        with signals.handled():
            return run_jobs(jobs, where, execute, workers=workers, title=title)

    return run


def _glance(cls: type[Claim], run: Runner, source: str, where: Path) -> dict[str, Any]:
    """Run every arm once, anew: the quick form is there to exercise the code, and nothing of it is kept."""
    shutil.rmtree(where, ignore_errors=True)
    chosen = {arm: trials(grid)[0] for arm, grid in cls.grids.items()}
    outcomes = _outcomes(cls, run, source, chosen, range(PILOT_SEEDS.start, PILOT_SEEDS.start + 1), quick=True)
    rows: list[dict[str, Any]] = [{"arm": arm, **found[0]["metrics"]} for arm, found in outcomes.items()]
    return {"id": cls.id, "quick": True, "source": source, "arms": rows}


def ranked(
    cls: type[Claim], outcomes: Mapping[str, Sequence[Outcome]], chosen: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a row an arm, the best first; an arm that was lost counts with the metric's worst value."""
    contrast = cls.contrasts()[0]
    metric, worst = contrast.metric, contrast.worst
    found = _found(outcomes, contrast)
    means = {arm: statistics.fmean(value for value in some if value is not None) for arm, some in found.items()}
    order = sorted(means, key=lambda arm: -means[arm] if contrast.higher_is_better else means[arm])
    references = {"gain": contrast.baseline, "over_kd": contrast.method, "behind": order[0]}
    further = {other.metric: _found(outcomes, other) for other in measured(cls)[1:]}
    rows = []
    for arm in order:
        row: dict[str, Any] = {"arm": arm, metric: means[arm], "interval": _interval([v or 0.0 for v in found[arm]])}
        for name, reference in references.items():
            if reference != arm and reference is not None:
                gaps = paired_differences(
                    found[arm], found[reference], scale=contrast.scale, higher_is_better=contrast.higher_is_better,
                    worst=worst,
                )  # fmt: skip
                row[name], row[f"{name}_interval"] = statistics.fmean(gaps), _interval(gaps)
        others = {key for outcome in outcomes[arm] for key in outcome["metrics"]} - {metric}
        row |= {key: _mean(values(outcomes[arm], key)) for key in sorted(others)}
        row |= {f"{key}_interval": _interval([v or 0.0 for v in some[arm]]) for key, some in further.items()}
        row |= {"lost": sum(outcome["status"] != "finished" for outcome in outcomes[arm]), "trial": dict(chosen[arm])}
        rows.append(row)
    return rows


def measured(cls: type[Claim]) -> list[Contrast]:
    """Return a contrast for each metric that a bench shows with an interval, that which ranks first."""
    found: dict[str, Contrast] = {}
    for contrast in (*cls.contrasts(), *cls.secondary):
        found.setdefault(contrast.metric, contrast)
    return list(found.values())


def _found(outcomes: Mapping[str, Sequence[Outcome]], contrast: Contrast) -> dict[str, list[float | None]]:
    """Return an arm's values of a contrast's metric, seed by seed, with the worst for those that were lost."""
    return {
        arm: [contrast.worst if value is None else value for value in values(some, contrast.metric)]
        for arm, some in outcomes.items()
    }


def _outcomes(
    cls: type[Claim],
    run: Runner,
    source: str,
    chosen: Mapping[str, dict[str, Any]],
    seeds: range,
    *,
    quick: bool = False,
) -> dict[str, list[Outcome]]:
    """Run every arm with its trial on every seed; return the outcomes in the order of the seeds."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    phase: Phase = "quick" if quick else "verdict"
    jobs = {
        arm: [Job(claim=path, phase=phase, arm=arm, seed=seed, source=source, trial=chosen[arm]) for seed in seeds]
        for arm in cls.arms()
    }
    found = run([jobs[arm][number] for number in range(len(seeds)) for arm in jobs], cls.id)
    return {arm: [found[place(job)] for job in some] for arm, some in jobs.items()}


def _interval(numbers: Sequence[float]) -> list[float]:
    return list(t_interval(numbers))


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    return statistics.fmean(known) if known else None

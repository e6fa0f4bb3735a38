"""The jobs of a claim: one arm on one seed in one thread, two at a time, each outcome kept against a kill."""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attar import files, ledger
from attar.claims.claim import Phase
from attar.errors import DamagedFile, NonFinite
from attar.spec import build, digest

Outcome = dict[str, Any]  # arm, seed, trial, phase, source, status, metrics, costs, seconds


@dataclass(frozen=True, kw_only=True)
class Job:
    """One arm on one seed."""

    claim: str  # module:Class
    phase: Phase
    arm: str
    seed: int
    source: str
    trial: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A name for files: phase, arm, seed and eight hex digits of the whole."""
        return f"{self.phase}-{self.arm}-s{self.seed}-{digest(asdict(self))[:8]}"


Execute = Callable[[Job, Path], Outcome]


def run_jobs(
    jobs: Sequence[Job], folder: Path, execute: Execute, *, workers: int, title: str
) -> dict[tuple[str, int, str], Outcome]:
    """Run what is not done yet and return every outcome by `place(job)`.

    An outcome is written to `folder` by the process that computed it, as soon as it is there.
    """
    from attar.run.fan_out import fan_out

    pending = [job for job in jobs if _read(folder, job) is None]
    fan_out(title, functools.partial(_finish, execute, folder), pending, workers=workers, threads=1)
    outcomes: dict[tuple[str, int, str], Outcome] = {}
    for job in jobs:
        outcome = _read(folder, job)
        if outcome is None:
            raise DamagedFile(f"{folder / job.key}.json is gone or damaged; give the same command again")
        outcomes[place(job)] = outcome
    return outcomes


def place(job: Job) -> tuple[str, int, str]:
    """Return (arm, seed, hash of the trial)."""
    return job.arm, job.seed, digest(job.trial)


def run_arm(job: Job, folder: Path) -> Outcome:
    """Run one arm of a claim in `folder` and return its outcome.

    The status is `finished`, `diverged` (a loss or a metric is not finite) or `timed-out`; both others count with the
    metric's worst admissible value. Any other error is a mistake in the claim, and is raised.
    """
    from attar.run import Plan, Run

    claim = ledger.load_path(job.claim)(job.phase, job.source)
    began = time.monotonic()
    metrics: dict[str, float] = {}
    plan = build(Plan, {"threads": 1})
    recipe, budget = digest(asdict(job)), claim.seconds_per_job
    with Run(folder, seed=job.seed, plan=plan, recipe=recipe, time=budget, copy=job.seed % claim.copies) as run:
        run.keep("meter of the claim", claim.meter)
        try:
            metrics = {name: float(value) for name, value in claim.arm(run, job.arm, job.seed, job.trial).items()}
            status = "timed-out" if run.partial else "finished"
        except NonFinite:
            status = "diverged"
    return outcome(job, metrics, claim.meter.costs(), time.monotonic() - began, status)


def outcome(job: Job, metrics: dict[str, float], costs: dict[str, float], seconds: float, status: str) -> Outcome:
    """Return the outcome of a job as JSON values; the metrics of an arm that was lost are left out."""
    if status == "finished" and not all(math.isfinite(value) for value in metrics.values()):
        status = "diverged"
    return {
        **asdict(job),
        "status": status,
        "metrics": metrics if status == "finished" else {},
        "costs": costs,
        "seconds": round(seconds, 3),
    }


def _finish(execute: Execute, folder: Path, job: Job) -> None:
    workplace = folder / "runs" / job.key
    result = execute(job, workplace)
    files.write_json(_file(folder, job), result)
    shutil.rmtree(workplace, ignore_errors=True)


def _file(folder: Path, job: Job) -> Path:
    return folder / f"{job.key}.json"


def _read(folder: Path, job: Job) -> Outcome | None:
    """Return a kept outcome; one that is damaged or of another job counts as not there."""
    file = _file(folder, job)
    if not file.exists():
        return None
    try:
        kept: Outcome = files.read_json(file)
    except DamagedFile:
        return None
    return kept if all(kept.get(name) == value for name, value in asdict(job).items()) else None

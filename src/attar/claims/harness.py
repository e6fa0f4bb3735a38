"""The claim harness: tune every arm alike, look at the spread, freeze, run the verdict seeds, judge."""

from __future__ import annotations

import datetime
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attar import files, results
from attar.claims import judgement
from attar.claims.account import account
from attar.claims.claim import PILOT_SEEDS, Claim, check, trials
from attar.claims.freeze import fingerprint, freeze, freeze_file, frozen, jobs_hash
from attar.claims.jobs import Execute, Job, Outcome, place, run_arm, run_jobs
from attar.claims.tuning import Tuned, tune
from attar.errors import RecipeError
from attar.spec import digest

WORKERS = 2
QUICK_SEED = PILOT_SEEDS.start
EMBEDDED = "fashion-mnist-mini"

Say = Callable[[str], None]


def run_claim(
    cls: type[Claim],
    *,
    seeds: int | None = None,
    first_seed: int | None = None,
    data: str | None = None,
    quick: bool = False,
    workers: int = WORKERS,
    execute: Execute = run_arm,
    folder: Path | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Check a claim and return its result as JSON values.

    With the seeds and the data of the claim file, the result is also written to `<folder>/<id>.json`. With others it is
    a replication: the same verdict, marked `"replication": true`, and no file. On the embedded subset a claim about the
    full data set gets no verdict. The quick form runs every arm once in seconds and gives no verdict either. Jobs that
    are done are kept under `ATTAR_HOME/claims`, so that a claim that was stopped goes on.

    Args:
        cls: the claim.
        seeds: number of verdict seeds, at least 2; the file's if not given.
        first_seed: the first of them, 0 if not given; 100-199 are for tuning.
        data: a source; the file's if not given.
        quick: the quick form.
        workers: processes of one thread each.
        execute: runs a job; tests give one that is instantaneous.
        folder: where results lie and are written; if not given `results.directory()`, and for an installed package,
            where that is not to be written to, `ATTAR_HOME/claims/results`.
        say: takes the lines that a person reads; standard error if not given.

    Raises:
        RecipeError: the claim file breaks a rule, the seeds are not verdict seeds, or their number has too
            little power.
    """
    say = say or _to_stderr
    check(cls)
    session = _Session(cls, data or cls.source, folder=folder, workers=workers, execute=execute, say=say)
    if quick:
        return session.quick()
    exact = all(contrast.form == "exact" for contrast in cls.contrasts())
    count = (1 if exact else cls.seeds) if seeds is None else seeds
    first = first_seed or 0
    chosen = range(first, first + count)
    _check_seeds(chosen, exact)
    replication = first != 0 or count != (1 if exact else cls.seeds) or session.source != cls.source
    say(f"claim {cls.id}: {cls.statement()}")
    return session.check(chosen, replication=replication)


class _Session:
    """One claim on one source: its folders, its jobs, and the steps in their order."""

    def __init__(
        self, cls: type[Claim], source: str, *, folder: Path | None, workers: int, execute: Execute, say: Say
    ) -> None:
        self.cls, self.source, self.workers, self.execute, self.say = cls, source, workers, execute, say
        self.shipped = folder or results.directory()
        mine = results.in_checkout() or folder is not None
        self.folder = self.shipped if mine else files.home() / "claims" / "results"
        self.identity = fingerprint(cls)
        self.path = f"{cls.__module__}:{cls.__qualname__}"
        self.place = files.home() / "claims" / f"{cls.id}-{jobs_hash(cls)[:8]}"
        self.own = source == cls.source
        self.seconds: dict[str, float] = {}  # job to seconds, so that a job asked for twice counts once

    # ------------------------------------------------------------------ the steps

    def quick(self) -> dict[str, Any]:
        """Run every arm once, small, in this process."""
        source = self.cls.quick_source if self.own else self.source
        jobs = [
            Job(claim=self.path, phase="quick", arm=arm, seed=QUICK_SEED, source=source, trial=trials(grid)[0])
            for arm, grid in self.cls.grids.items()
        ]
        place_once = self.place / "quick"  # nothing is kept: the quick form is there to exercise the code
        shutil.rmtree(place_once, ignore_errors=True)
        found = run_jobs(jobs, place_once, self.execute, workers=1, title=f"{self.cls.id} quick")
        outcomes = {job.arm: [found[place(job)]] for job in jobs}
        for contrast in self.cls.contrasts():
            judgement.differences(contrast, outcomes)
        self.say("quick form: every arm ran, no verdict")
        seconds = math.fsum(outcome["seconds"] for outcome in found.values())
        arms = judgement.arm_records(self.cls, outcomes)
        return {"id": self.cls.id, "quick": True, **_NO_VERDICT, "seconds": seconds, "source": source, **arms}

    def check(self, seeds: range, *, replication: bool) -> dict[str, Any]:
        """Tune, freeze, run the verdict seeds and judge."""
        other = self.source.startswith(EMBEDDED) and not self.cls.source.startswith(EMBEDDED)
        choices = self.choices(replication=replication)
        outcomes = self.verdict_seeds(seeds, choices["chosen"])
        tried = choices["trials"]
        judged = judgement.judge(self.cls, outcomes, tried)
        extended = self.cls.may_extend and not replication and _wants_second_look(judged, self.cls, outcomes, tried)
        if extended:
            self.say(f"inconclusive after {len(seeds)} seeds; the claim file allows one extension to {3 * len(seeds)}")
            seeds = range(3 * len(seeds))
            outcomes = self.verdict_seeds(seeds, choices["chosen"])
            judged = judgement.judge(self.cls, outcomes, tried)
        result = {
            **self.record(judged, outcomes, choices, seeds),
            "extended": extended,
            "replication": replication,
        }
        if other:
            self.say(f"the setting differs: the claim is about {self.cls.source}, this is {self.source}; no verdict")
            return {**result, **_NO_VERDICT, "reason": "the setting differs"}
        for line in account(result):
            self.say(line)
        if replication:
            self.say("a replication with other seeds or data than the claim file's: no result file is written")
            return result
        return self.keep(result)

    def choices(self, *, replication: bool) -> dict[str, Any]:
        """Return the frozen choices; tune and freeze them if there are none for this version of the claim."""
        file = freeze_file(self.cls, self.folder if self.own else self.place / digest(self.source)[:8])
        known = frozen(self.cls, file)
        if known is None and self.own:
            known = frozen(self.cls, freeze_file(self.cls, self.shipped))
        if known is not None:
            return known
        tuned = tune(self.cls, self.run, self.source, self.say)
        rows = self.power(tuned, replication=replication)
        if not replication:
            self.refuse_without_power(rows)
        if fingerprint(self.cls)["hash"] != self.identity["hash"]:
            raise RecipeError(f"the file of claim '{self.cls.id}' changed while it was tuned; give the command again")
        record = {
            "id": self.cls.id,
            **self.identity,
            "source": self.source,
            "seeds": self.cls.seeds,
            "chosen": tuned.chosen,
            "trials": {arm: len(tried) * self.cls.trial_seeds for arm, tried in tuned.table.items()},
            "tuning": {"seeds": list(self.cls.tuning_seeds), "arms": tuned.table, "notes": tuned.notes},
            "power": rows,
            "underpowered": self.cls.underpowered,
            **_provenance(),
            "frozen": _now(),
        }
        if not (replication and self.own):  # another's seeds do not freeze the claim
            freeze(file, record)
        return record

    def power(self, tuned: Tuned, *, replication: bool) -> list[dict[str, Any]]:
        """Return spread and power of each seeded contrast from the tuning seeds.

        Raises:
            RecipeError: a baseline lies near the floor of its metric already there, and this is no replication.
        """
        if all(contrast.form == "exact" for contrast in self.cls.contrasts()):
            return []
        outcomes = self.outcomes("tuning", self.cls.tuning_seeds, tuned.chosen)
        near = judgement.near_floor(self.cls, outcomes)
        if near and not replication:
            raise RecipeError(
                f"claim '{self.cls.id}', on the tuning seeds: {near}, a harder setting, or more samples; no verdict on "
                "other seeds would count"
            )
        each = math.fsum(done["seconds"] for some in outcomes.values() for done in some) / len(self.cls.tuning_seeds)
        minutes = each * self.cls.seeds / self.workers / 60  # shared stages of other copies may come on top
        self.say(f"the {self.cls.seeds} verdict seeds take about {math.ceil(minutes)} min with {self.workers} workers")
        rows = judgement.planned(self.cls, outcomes)
        for row in rows:
            self.say(
                f"{row['contrast']}: seen {row['seen']:+.4g}, expected {row['expects']:+.4g}, "
                f"sigma {row['sigma']:.4g}; "
                f"{row['seeds']} seeds give {row['power']:.0%} power, 90 % needs {row['needed'] or 'more than 1000'}"
            )
        return rows

    def refuse_without_power(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raise RecipeError if a contrast has less than 90 % power and the file does not say why it starts anyway.

        No reason excuses one that more than a thousand seeds would not resolve: an arm collapses on some seeds.
        """
        weak = [row for row in rows if row["power"] < judgement.power.POWER]
        for row in weak:
            if row["needed"] is None:
                raise RecipeError(
                    f"claim '{self.cls.id}': on the tuning seeds {row['contrast']} differs by {row['seen']:.3g} with a "
                    f"spread of {row['sigma']:.3g}, for {row['expects']:g} expected: an arm seems to collapse on some "
                    "seeds. Look at the tuning jobs, and mend the grids of both arms or the expected effect"
                )
        if not weak or self.cls.underpowered:
            return
        worst = min(weak, key=lambda row: row["power"])
        needed = worst["needed"] or "more than 1000"
        raise RecipeError(
            f"claim '{self.cls.id}': {self.cls.seeds} seeds give {worst['power']:.0%} power for {worst['contrast']} "
            f"(sigma {worst['sigma']:.3g} on tuning seeds); write seeds = {needed} into the claim file, or say in "
            f"'underpowered' why it should start anyway"
        )

    def verdict_seeds(self, seeds: range, chosen: dict[str, Any]) -> dict[str, list[Outcome]]:
        """Run every arm on every verdict seed."""
        return self.outcomes("verdict", seeds, chosen)

    def outcomes(self, phase: Any, seeds: Sequence[int], chosen: dict[str, Any]) -> dict[str, list[Outcome]]:
        """Run every arm with its chosen trial; return the outcomes in the order of the seeds."""
        jobs = {
            arm: [
                Job(claim=self.path, phase=phase, arm=arm, seed=seed, source=self.source, trial=chosen[arm])
                for seed in seeds
            ]
            for arm in self.cls.arms()
        }
        # seed by seed, so that a claim that is stopped has whole pairs
        found = self.run([jobs[arm][i] for i in range(len(seeds)) for arm in jobs], f"{self.cls.id} {phase}")
        return {arm: [found[place(job)] for job in some] for arm, some in jobs.items()}

    def run(self, jobs: Sequence[Job], title: str) -> dict[tuple[str, int, str], Outcome]:
        """Run jobs and remember what they took."""
        from attar.run import signals

        with signals.handled():
            found = run_jobs(jobs, self.place, self.execute, workers=self.workers, title=title)
        self.seconds |= {job.key: found[place(job)]["seconds"] for job in jobs}
        return found

    # ------------------------------------------------------------------ the result

    def record(
        self, judged: judgement.Judgement, outcomes: judgement.Outcomes, choices: dict[str, Any], seeds: range
    ) -> dict[str, Any]:
        """Return the result as JSON values."""
        cls, whole = self.cls, judged.whole
        primary = [
            judgement.described(contrast, outcomes, part)
            for contrast, part in zip(cls.contrasts(), judged.parts, strict=True)
        ]
        further = {name: choices[name] for name in ("tuning", "power", "underpowered")}
        return {
            "id": cls.id,
            "title": cls.title,
            **asdict(whole),
            "interval": list(whole.interval),
            # thread-seconds of all jobs over the workers: about the wall-clock of a run that was never stopped
            "seconds": round(math.fsum(self.seconds.values()) / self.workers, 1),
            "statement": cls.statement(),
            "says": cls.says,
            "expects": cls.expects,
            "origin": cls.origin,
            "source": self.source,
            "constructed": cls.constructed,
            "fixed": list(cls.fixed),
            "seeds": list(seeds),
            "primary": primary,
            "secondary": [judgement.described(contrast, outcomes) for contrast in cls.secondary],
            "precondition": self.precondition(outcomes),
            "copies": judgement.by_copy(cls, outcomes),
            **judgement.arm_records(cls, outcomes),
            "currency": cls.currency,
            "currencies": judgement.currencies(outcomes, choices["trials"]),
            **further,
            "claim": self.path,
            **self.identity,
            **_provenance(),
            "frozen": choices["frozen"],
            "finished": _now(),
        }

    def precondition(self, outcomes: judgement.Outcomes) -> dict[str, Any] | None:
        """Return the precondition as JSON values."""
        stated = self.cls.precondition
        if stated is None:
            return None
        return {"says": stated.says, "at_least": stated.at_least, "measured": judgement.measured(stated, outcomes)}

    def keep(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write the result file; what stood there is listed under `earlier`, unless it says the same."""
        file = self.folder / f"{self.cls.id}.json"
        there = next((f for f in (file, self.shipped / file.name) if f.exists()), None)
        before = results.read(there) if there else None
        if before is not None and _same(before, result):
            self.say(f"{file} already says so")
            return before
        earlier = [*before.get("earlier", []), {k: before.get(k) for k in _LISTED}] if before else []
        result = {**result, "earlier": earlier}
        files.write_json(file, result)
        results.doubt_file(file).unlink(missing_ok=True)
        self.say(f"written to {file}")
        return result


_NO_VERDICT: dict[str, Any] = {"verdict": None, "reason": "no verdict", "effect": None, "interval": None, "p": None}
_LISTED = (
    "hash", "statement", "verdict", "reason", "effect", "interval", "confidence", "p", "delta", "n", "seconds",
    "commit", "finished", "currency", "versions",
)  # fmt: skip


def _check_seeds(seeds: range, exact: bool) -> None:
    if len(seeds) < (1 if exact else 2):
        raise RecipeError(f"a verdict needs at least two paired seeds, got {len(seeds)}")
    if seeds.start < 0:
        raise RecipeError(f"seeds start at 0, got {seeds.start}")
    if set(seeds) & set(PILOT_SEEDS):
        raise RecipeError("seeds 100-199 are for tuning and never for a verdict; replicate with --first-seed 1000")


def _wants_second_look(
    judged: judgement.Judgement, cls: type[Claim], outcomes: judgement.Outcomes, tried: dict[str, int]
) -> bool:
    """Say whether more seeds could settle it: the intervals are too wide, and nothing else stands in the way."""
    return judged.whole.verdict == "inconclusive" and not judgement.hindrance(cls, outcomes, tried)


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Say whether two results are of one version of the claim and have the same values, seed by seed."""

    def told(result: dict[str, Any]) -> Any:
        arms = {arm: (some["trial"], some["values"], some["status"]) for arm, some in result["measured"].items()}
        return result["hash"], digest(arms), result["verdict"], result["seeds"]

    return bool(told(before) == told(after))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _provenance() -> dict[str, Any]:
    from attar.run.provenance import provenance

    return dict(provenance())


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

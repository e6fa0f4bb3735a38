"""Hurt runs in every way for as long as told, and count what was lost; `make torture` prints the table.

    python tests/faults/torture.py --minutes 20 --seed 0

A case is one run of one method in a folder of its own. It is hurt a few times, each time in another start, and then
started once more, unhurt. A try is a fault that met the run at work. It is survived when the process ended as it
should, when no finished stage and no checkpoint was lost, and when the run ends with the fingerprint and the metrics
of an untouched one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import injected
import killable

import tiny
from attar import files
from attar.errors import AttarError
from attar.run import log
from attar.run.checkpoint import Place
from attar.spec import digest

FINISHED = Place(10**9, 0, True)  # beyond every checkpoint
NOTHING = Place(0, 0, False)
ANOTHER = "another"  # the recipe of a checkpoint that does not belong here
GOES_ON = {0, -signal.SIGKILL}  # the process was killed, or was done before
PATIENCE_SECONDS = 180


class Lost(Exception):
    """A fault was not survived; the message says what was seen."""


@dataclasses.dataclass
class Case:
    """One run, in a folder of its own."""

    id: str
    root: Path
    settings: dict[str, Any]
    rng: random.Random
    seconds: float = 1.0  # an untouched run takes

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.root / "run"

    def start(self, fault: dict[str, Any] | None = None, said: str = "said.txt") -> Any:
        """Start the run in a process of its own, with a fault inside it or none."""
        tiny.one_worker(self.root / "home")
        (self.root / said).with_suffix(".ready").unlink(missing_ok=True)
        settings = {**self.settings, "out": str(self.run)}
        arguments = (self.id, settings, str(self.root / "home"), str(self.root / said), fault or {})
        process = killable.context.Process(target=injected.work, args=arguments)
        process.start()
        return process

    def end(self, process: Any, codes: set[int], said: str = "said.txt") -> tuple[int, str]:
        """Wait for the process; return its exit code, which must be one of `codes`, and what it said."""
        process.join(PATIENCE_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise Lost(f"it hung for {PATIENCE_SECONDS} seconds")
        path = self.root / said
        text = path.read_text() if path.exists() else ""
        if process.exitcode not in codes:
            raise Lost(f"exit code {process.exitcode}, not one of {sorted(codes)}: {text.strip()[-600:]}")
        if "Traceback" in text:
            raise Lost(f"it showed a traceback: {text.strip()[-600:]}")
        return process.exitcode, text

    def reached(self) -> dict[Path, Place]:
        """Return how far the run and each of its stages are saved."""
        folders = [self.run, *(p for p in (self.root / "home" / "stages").glob("*") if p.is_dir())]
        return {folder: _furthest(folder) for folder in folders}

    def outcome(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the fingerprint of the finished run and its metrics less the clock."""
        record = files.read_json(self.run / "run.json")
        metrics = [{**line, "time": 0} for line in log.read(self.run / "metrics.jsonl")]
        if record["state"] != "finished":
            raise Lost(f"it ended {record['state']}")
        return record["fingerprint"], metrics

    def wait_until_it_works(self, process: Any) -> None:
        """Return when the process has reached the command line's door, or ended."""
        until = time.monotonic() + PATIENCE_SECONDS
        while process.is_alive() and not (self.root / "said.ready").exists() and time.monotonic() < until:
            time.sleep(0.001)


def _furthest(folder: Path) -> Place:
    record = folder / "run.json"
    if record.exists() and files.read_json(record)["state"] == "finished":
        return FINISHED
    return max((place for path in folder.glob("checkpoints/*.json") if (place := _place(path))), default=NOTHING)


def _place(path: Path) -> Place | None:
    """Return where a checkpoint was written, or none for one that we damaged: it never counts again."""
    with contextlib.suppress(ValueError, KeyError, OSError):
        manifest = json.loads(path.read_text())
        told = {key: value for key, value in manifest.items() if key != "digest"}
        tensors = hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()
        if digest(told) == manifest["digest"] and tensors == manifest["sha256"] and manifest["recipe"] != ANOTHER:
            return Place(*manifest["place"])
    return None


# ------------------------------------------------------------------ faults


def kill(case: Case) -> bool:
    """SIGKILL at a random moment."""
    process = case.start()
    time.sleep(case.rng.uniform(0, 0.8 * case.seconds))
    process.kill()
    return case.end(process, GOES_ON)[0] != 0


def kill_in_a_checkpoint_write(case: Case) -> bool:
    """SIGKILL inside the write of a checkpoint: its tensors, its manifest, or between the two."""
    return _die_writing(case, injected.CHECKPOINT)


def kill_in_a_stage_write(case: Case) -> bool:
    """SIGKILL inside a write to the cache of stages: checkpoint, artifact or record."""
    return _die_writing(case, injected.STAGE)


def _die_writing(case: Case, where: str) -> bool:
    renamed = case.rng.random() < 0.5
    nth = int(case.rng.expovariate(1 / 6))
    fault = {"die_writing": where, "nth": nth, "part": case.rng.random(), "renamed": renamed}
    return case.end(case.start(fault), GOES_ON)[0] != 0


def stop_with_sigterm(case: Case) -> bool:
    """SIGTERM at a random moment."""
    return _stop(case, signal.SIGTERM)


def stop_with_sigint(case: Case) -> bool:
    """Ctrl-C at a random moment."""
    return _stop(case, signal.SIGINT)


def _stop(case: Case, number: signal.Signals) -> bool:
    process = case.start()
    case.wait_until_it_works(process)
    time.sleep(case.rng.uniform(0, case.seconds / 2))
    if process.is_alive():
        os.kill(process.pid, number)
    return case.end(process, {0, 128 + number, -number})[0] != 0  # minus: it came behind the end of the run


def fill_the_disk(case: Case) -> bool:
    """No room for a file of more than so many bytes (2000: what it says is one too): any file of the run."""
    code, said = case.end(case.start({"file_bytes": int(10 ** case.rng.uniform(3.3, 5.5))}), {0, 2})
    if code == 2 and "the disk is full" not in said:
        raise Lost(f"a full disk was told as: {said.strip()[-300:]}")
    return code == 2


def flip_a_bit(case: Case) -> bool:
    """One bit of a checkpoint is another."""
    return _damage(case, _flip)


def truncate(case: Case) -> bool:
    """A checkpoint is cut short."""
    return _damage(case, lambda path, rng: os.truncate(path, rng.randrange(path.stat().st_size)))


def belong_to_another(case: Case) -> bool:
    """A checkpoint is whole and of another recipe."""

    def rewrite(path: Path, rng: random.Random) -> None:
        manifest = json.loads(path.with_suffix(".json").read_text())
        del manifest["digest"]
        manifest["recipe"] = ANOTHER
        path.with_suffix(".json").write_text(json.dumps({**manifest, "digest": digest(manifest)}))

    return _damage(case, rewrite)


def _damage(case: Case, damage: Callable[[Path, random.Random], None]) -> bool:
    """Kill the run behind a checkpoint, and damage the newest file of one."""
    fault = {
        "die_writing": injected.CHECKPOINT,
        "nth": 1 + int(case.rng.expovariate(1 / 6)),
        "part": 1.0,
        "renamed": True,
    }
    case.end(case.start(fault), GOES_ON)
    found = sorted(case.root.rglob("checkpoints/[!.]*"), key=lambda path: path.stat().st_mtime_ns)
    whole = [path for path in found if path.with_suffix(".json").exists()]
    if whole:
        damage(whole[-1] if case.rng.random() < 0.7 else case.rng.choice(whole), case.rng)
    return bool(whole)


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def start_twice(case: Case) -> bool:
    """Two processes are started on one folder: one of them works, the other is refused."""
    processes = {said: case.start(said=said) for said in ("said.txt", "other.txt")}
    ended = [case.end(process, {0, 2}, said) for said, process in processes.items()]
    for code, said in ended:
        if code == 2 and "another process is working in" not in said:
            raise Lost(f"the second was refused with: {said.strip()[-300:]}")
    if all(code == 2 for code, _ in ended):
        raise Lost("both were refused")
    return any(code == 2 for code, _ in ended)


def turn_back_the_clock(case: Case) -> bool:
    """The wall clock jumps back and forth, and the run is killed under it."""
    process = case.start({"clock": case.rng.random()})
    time.sleep(case.rng.uniform(0, case.seconds))
    process.kill()
    return case.end(process, GOES_ON)[0] != 0


def spoil_a_loss(case: Case) -> bool:
    """A loss becomes NaN or infinite: exit code 1, and loop, step and term are named."""
    mark = case.root / "said.spoiled"
    mark.unlink(missing_ok=True)
    fault = {"loss": case.rng.choice(injected.spoils()), "nth": case.rng.randrange(8)}
    process = case.start(fault)
    process.join(PATIENCE_SECONDS)
    code, said = case.end(process, {1} if mark.exists() else {0})
    if code == 1:
        told = json.loads(mark.read_text())
        wanted = (f"{told['term']} of learner", f"at step {told['step']} of loop '{told['loop']}'")
        if missing := [words for words in wanted if words not in said]:
            raise Lost(f"the error does not name {missing}: {said.strip()[-300:]}")
    return code == 1


FAULTS: dict[str, Callable[[Case], bool]] = {
    "SIGKILL at a random moment": kill,
    "SIGKILL inside a checkpoint write": kill_in_a_checkpoint_write,
    "SIGKILL inside a stage-cache write": kill_in_a_stage_write,
    "SIGTERM": stop_with_sigterm,
    "SIGINT (Ctrl-C)": stop_with_sigint,
    "disk full": fill_the_disk,
    "checkpoint with a flipped bit": flip_a_bit,
    "checkpoint cut short": truncate,
    "checkpoint of another recipe": belong_to_another,
    "two processes on one folder": start_twice,
    "wall clock jumping back": turn_back_the_clock,
    "NaN or Inf in a loss": spoil_a_loss,
}
DAMAGING = {flip_a_bit, truncate, belong_to_another}


# ------------------------------------------------------------------ cases


def hurt(case: Case, name: str) -> bool:
    """Apply one fault, and see that what had been saved before it still is; return whether it met the run at work.

    Raises:
        Lost: it is not.
    """
    before = case.reached()
    met = FAULTS[name](case)
    after = case.reached()
    for folder, place in before.items():
        lost = place > after.get(folder, NOTHING)
        if lost and (FAULTS[name] not in DAMAGING or place == FINISHED):
            raise Lost(f"{folder.name} had reached {place} and has {after.get(folder)}")
    return met


def untouched(case: Case) -> tuple[str, list[dict[str, Any]]]:
    """Run a case with no fault, and note how long that takes."""
    began = time.monotonic()
    case.end(case.start(), {0})
    case.seconds = time.monotonic() - began
    return case.outcome()


class Torture:
    """Cases one after another, and the count of what became of their faults."""

    def __init__(self, root: Path, seed: int, methods: list[str]) -> None:
        self.root, self.seed, self.methods = root, seed, methods
        self.data = tiny.write_data(root / "data.npz")
        self.whole: dict[str, tuple[tuple[str, list[dict[str, Any]]], float]] = {}
        self.tries, self.lost = dict.fromkeys(FAULTS, 0), dict.fromkeys(FAULTS, 0)
        self._names = self._shuffled()

    def _shuffled(self) -> Iterator[str]:
        """Yield faults for ever: all of them in a random order, then all of them in another."""
        rng = random.Random(f"{self.seed} order")
        while True:
            yield from rng.sample(list(FAULTS), len(FAULTS))

    def case(self, number: int) -> None:
        """Hurt one run a few times, then let it end."""
        rng = random.Random(f"{self.seed} {number}")
        id = self.methods[number % len(self.methods)]
        settings = {**tiny.settings(id), "data": self.data, "seed": 3}
        if id not in self.whole:
            alone = Case(id, self.root / f"whole-{id}", settings, rng)
            self.whole[id] = untouched(alone), alone.seconds
            shutil.rmtree(alone.root)
        expected, seconds = self.whole[id]
        case = Case(id, self.root / f"case-{number}", settings, rng, seconds)
        faults = []
        for name in itertools.islice(self._names, rng.randint(2, 4)):
            if case.reached()[case.run] == FINISHED:
                break
            try:
                met = hurt(case, name)
            except (Lost, AttarError, OSError) as error:
                self.tries[name] += 1
                self._tell(number, id, [name], error)
                return  # its folder stays, for whoever looks into it
            if met:
                self.tries[name] += 1
                faults.append(name)
        try:
            _ends_as(case, expected)
            shutil.rmtree(case.root)
        except (Lost, AttarError, OSError) as error:
            self._tell(number, id, faults, error)

    def _tell(self, number: int, id: str, blamed: list[str], error: Exception) -> None:
        print(f"LOST in case {number} ({id}) behind {', '.join(blamed)}: {error}", file=sys.stderr, flush=True)
        for name in blamed:
            self.lost[name] += 1

    def table(self) -> str:
        """Return fault, tries, survived and lost as a Markdown table."""
        lines = ["| fault | tries | survived | lost |", "|---|---:|---:|---:|"]
        for name, tries in self.tries.items():
            lines.append(f"| {name} | {tries} | {tries - self.lost[name]} | {self.lost[name]} |")
        lines.append(f"| all | {sum(self.tries.values())} | {self.survived} | {sum(self.lost.values())} |")
        return "\n".join(lines)

    @property
    def survived(self) -> int:
        """How many faults cost nothing."""
        return sum(self.tries.values()) - sum(self.lost.values())


def _ends_as(case: Case, expected: tuple[str, list[dict[str, Any]]]) -> None:
    case.end(case.start(), {0})
    got = case.outcome()
    if got[0] != expected[0]:
        raise Lost(f"fingerprint {got[0]}, untouched {expected[0]}")
    if got[1] != expected[1]:
        raise Lost(f"metrics differ from the untouched run's: {len(got[1])} records, {len(expected[1])} there")
    if left := [*case.root.rglob(".*.tmp"), *(case.root / "home").rglob("checkpoints")]:
        raise Lost(f"it left {left[0]} behind")


def main() -> int:
    """Torture for so many minutes, print the table, and return 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="of the methods, the faults and their moments")
    parser.add_argument("--methods", nargs="*", help="ids; all that have tiny settings unless told")
    asked = parser.parse_args()
    methods = asked.methods or [id for id in tiny.methods() if id in tiny.TINY]
    root = Path(tempfile.mkdtemp(prefix="attar-torture-"))
    torture = Torture(root, asked.seed, methods)
    until, number = time.monotonic() + 60 * asked.minutes, 0
    while time.monotonic() < until:
        torture.case(number)
        number += 1
    print(torture.table())
    print(f"\n{number} runs of {len(torture.whole)} methods, seed {asked.seed}, {asked.minutes:g} minutes")
    if any(torture.lost.values()):
        print(f"what was lost lies in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())

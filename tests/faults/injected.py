"""The process that is hurt: a run started by the command line's door, with one fault prepared inside of it."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import resource
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attar import files

CHECKPOINT, STAGE = "/checkpoints/", "/stages/"


def work(id: str, settings: Mapping[str, Any], home: str, said: str, fault: Mapping[str, Any]) -> None:
    """Run `attar run` with this fault; what it says goes to the file `said`."""
    own = {"ATTAR_HOME": home, "ATTAR_CHECKPOINT_SECONDS": "0", "ATTAR_PROGRESS": "off", "COLUMNS": "500"}
    os.environ.update(own)
    told = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    import torch

    from attar import cli

    torch.set_num_threads(1)
    match fault:
        case {"die_writing": where, "nth": nth, "part": part, "renamed": renamed}:
            die_writing(where, nth, part, renamed=renamed)
        case {"file_bytes": limit}:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        case {"clock": seed}:
            turn_back_the_clock(seed)
        case {"loss": value, "nth": nth}:
            spoil_a_loss(value, nth, Path(said).with_suffix(".spoiled"))
    Path(said).with_suffix(".ready").touch()
    cli.main(["run", id, *(f"{key}={_word(value)}" for key, value in settings.items())])


def die_writing(where: str, nth: int, part: float, *, renamed: bool) -> None:
    """Kill this process inside its nth write of a file whose path holds `where`.

    The file is `part` written and lies aside; or it is whole and `renamed`, and nothing after it was done.
    """
    writes = itertools.count()
    fsync = files._fsync

    def fsync_or_die(path: Path) -> None:
        aside = path.suffix == ".tmp" and path.is_file()  # not the folder of an artifact on its way
        if where in f"{path}/" and aside != renamed and next(writes) == nth:
            if aside:
                os.truncate(path, int(part * path.stat().st_size))
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(path)

    files._fsync = fsync_or_die


def turn_back_the_clock(seed: int) -> None:
    """Let the wall clock jump back and forth by up to a year at every look; the monotonic one cannot."""
    rng, true = random.Random(seed), time.time
    time.time = lambda: true() - rng.uniform(0, 3.15e7)
    time.time_ns = lambda: int(time.time() * 1e9)


def spoil_a_loss(value: float, nth: int, mark: Path) -> None:
    """Add NaN or infinity to the nth loss that a learner is given; leave in `mark` where that was."""
    from attar.run import Run

    calls = itertools.count()
    backward = Run.backward

    def spoiled(run: Run, loss: Any, *learners: Any, **more: Any) -> None:
        if next(calls) == nth and learners[0].on_nonfinite == "raise":
            terms = dict(loss) if isinstance(loss, Mapping) else {"loss": loss}
            name = next(iter(terms))
            terms[name] = terms[name] + value
            mark.write_text(json.dumps({"loop": run.loop_name, "step": run.step, "term": name}))
            loss = terms if isinstance(loss, Mapping) else terms[name]
        backward(run, loss, *learners, **more)

    Run.backward = spoiled


def spoils() -> tuple[float, float]:
    """Return what a loss is spoiled with."""
    return math.nan, math.inf


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

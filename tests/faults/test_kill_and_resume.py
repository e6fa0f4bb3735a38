"""A run killed with SIGKILL at any moment, any number of times, ends with the fingerprint of an untouched run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import killable
import pytest

import tiny
from attar.run import log

KILLS = 3


def checkpoints(root):
    """The manifests of all checkpoints of a run and its stages."""
    found = set()
    for folder, _, names in os.walk(root):  # which bears folders that go while it looks
        if Path(folder).name == "checkpoints":
            found |= {name for name in names if name.endswith(".json")}
    return found


def metrics(folder):
    """The log without its clock."""
    return [{k: v for k, v in record.items() if k != "time"} for record in log.read(folder / "metrics.jsonl")]


def kill_one(process, root, rng):
    """Kill the process soon after it wrote a checkpoint, or where it writes none, soon; say whether it was alive."""
    before = checkpoints(root)
    until = time.monotonic() + 20
    while process.is_alive() and checkpoints(root) <= before and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.04))
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


@pytest.mark.parametrize("id", tiny.methods())
def test_a_run_killed_again_and_again_ends_as_an_untouched_one(id, tmp_path):
    data = tiny.write_data(tmp_path / "data.npz")
    settings = {"data": data, "seed": 3, **tiny.settings(id)}
    roots = {name: tmp_path / name for name in ("whole", "killed")}

    def start(name, interval):
        return killable.start(id, {**settings, "out": str(roots[name] / "run")}, roots[name] / "home", interval)

    whole = start("whole", 30.0)
    rng = random.Random(id)
    killed = sum(kill_one(start("killed", 0.0), roots["killed"], rng) for _ in range(KILLS))
    last = start("killed", 0.0)
    for process in (whole, last):
        process.join()
        assert process.exitcode == 0
    records = {name: json.loads((root / "run" / "run.json").read_text()) for name, root in roots.items()}
    assert records["killed"]["fingerprint"] == records["whole"]["fingerprint"]
    assert metrics(roots["killed"] / "run") == metrics(roots["whole"] / "run")
    assert {record["state"] for record in records.values()} == {"finished"}
    assert not list(roots["killed"].rglob("*.tmp"))
    assert not list((roots["killed"] / "home").rglob("checkpoints"))
    assert killed or not metrics(roots["whole"] / "run"), "no kill met the run alive: make its tiny settings larger"


def test_the_command_line_goes_on_after_a_kill(tmp_path):
    settings = {**tiny.settings("dm"), "steps": 40, "data": tiny.write_data(tmp_path / "data.npz")}
    whole = killable.start("dm", {**settings, "out": str(tmp_path / "whole")}, tmp_path / "whole-home", 30.0)
    fields = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "attar", "run", "dm", *fields, f"out={tmp_path / 'killed'}", "--json"]
    own = {"ATTAR_HOME": str(tmp_path / "home"), "ATTAR_CHECKPOINT_SECONDS": "0", "OMP_NUM_THREADS": "1"}
    told = {"env": {**os.environ, **own}, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **told) as process:
        while process.poll() is None and not checkpoints(tmp_path / "killed"):
            time.sleep(0.001)
        time.sleep(0.03)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    answer = json.loads(subprocess.run(command, **told, check=True).stdout.splitlines()[-1])
    whole.join()
    assert answer["fingerprint"] == json.loads((tmp_path / "whole" / "run.json").read_text())["fingerprint"]
    assert answer["state"] == "finished"
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on_and_leaves_with_the_signals_code(tmp_path, number, code):
    data = tiny.write_data(tmp_path / "data.npz")
    process = killable.start("dm", {**tiny.settings("dm"), "steps": 5000, "data": data, "out": str(tmp_path / "run")},
                             tmp_path / "home", 0.0)  # fmt: skip
    while process.is_alive() and not checkpoints(tmp_path):
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == code
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "running"

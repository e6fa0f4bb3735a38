"""Two processes started by a launcher do one run together: same result, written once, and killed ones go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import attar

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "attar"]
TOLERANCE = 1e-5  # of a pixel in normalised space: what summing gradients in another order may change


def start(folder, words, *, launched, seconds="3600"):
    return call(folder, ["run", *words, f"out={folder / 'run'}"], launched=launched, seconds=seconds)


def call(folder, words, *, launched, seconds="3600"):
    environment = {**os.environ, "ATTAR_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    environment |= {"ATTAR_CHECKPOINT_SECONDS": seconds, "ATTAR_PROGRESS": "off"}
    command = LAUNCH if launched else [sys.executable, "-m", "attar"]
    return subprocess.Popen(
        [*command, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    return out


DATA = "data=digits"
NET = ["net.width=4", "net.depth=1"]
RUNS = {
    "dm": ["dm", DATA, "ipc=2", "steps=6", "real_batch=8", *NET],
    "dsa": ["dsa", DATA, "ipc=2", "steps=2", "updates=2", "epochs=1", "real_batch=8", *NET],
    "dcc": [
        "dcc",
        DATA,
        "ipc=2",
        "mirror=true",
        "warmup_share=0",
        "steps=2",
        "updates=2",
        "epochs=1",
        "real_batch=8",
        *NET,
    ],
    "herding": ["herding", DATA, "ipc=2", "epochs=1", *NET],
    "mtt": [
        "mtt",
        DATA,
        "ipc=1",
        "steps=3",
        "student_steps=2",
        "expert_epochs=1",
        'window={"first": 0, "stop": 1}',
        "experts.count=1",
        "experts.epochs=2",
        *NET,
    ],
}


@pytest.mark.parametrize("id", RUNS)
def test_two_launched_processes_give_what_one_gives(tmp_path, id):
    for name, launched in (("one", False), ("two", True)):
        (tmp_path / name).mkdir()
        out = finish(start(tmp_path / name, [*RUNS[id], "--json"], launched=launched))
        lines = [line for line in out.splitlines() if line.startswith("{")]
        assert len(lines) == 1  # the first process alone speaks
        assert json.loads(lines[0])["state"] == "finished"
    one, two = (attar.load(tmp_path / name / "run").tensors() for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=TOLERANCE, rtol=0)
    read = [(tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(read[0]) == len(read[1])  # every record once
    for mine, theirs in zip(*(map(json.loads, lines) for lines in read), strict=True):
        for record in (mine, theirs):
            del record["time"]
        assert theirs.pop("loop") == mine.pop("loop")
        assert theirs == pytest.approx(mine, rel=1e-4)


def test_launched_processes_share_the_networks_of_an_evaluation_and_write_it_once(tmp_path):
    run = tmp_path / "run"
    attar.run("random", data="digits", ipc=2, out=run)
    protocol = ["evaluate", str(run), "training.epochs=3", "net.depth=1", "net.width=4", "--networks", "3"]
    protocol += ["--baselines", "random", "--json"]
    told = [
        json.loads(finish(call(tmp_path, protocol, launched=launched)).splitlines()[-1]) for launched in (False, True)
    ]
    one, two = ({arm["name"]: arm["accuracies"] for arm in each["arms"]} for each in told)
    assert one == two
    assert json.loads((run / "evaluation.json").read_text())["arms"] == told[1]["arms"]


def test_a_killed_process_ends_the_other_and_the_run_goes_on(tmp_path):
    words = ["dm", DATA, "ipc=1", "steps=400", "real_batch=8", *NET]
    (tmp_path / "whole").mkdir()
    finish(start(tmp_path / "whole", words, launched=True))
    (tmp_path / "killed").mkdir()
    process = start(tmp_path / "killed", words, launched=True, seconds="0.05")
    victim = _second_process(process.pid, tmp_path / "killed" / "run" / "checkpoints")
    os.kill(victim, signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode != 0  # the launcher ends the other one, which has no bug to report
    assert "Traceback" not in told.partition("torch/distributed/elastic")[0]
    finish(start(tmp_path / "killed", words, launched=True))
    record = json.loads((tmp_path / "killed" / "run" / "run.json").read_text())
    assert record["starts"] == 2
    assert record["fingerprint"] == json.loads((tmp_path / "whole" / "run" / "run.json").read_text())["fingerprint"]


def _second_process(launcher, checkpoints):
    """Return the process of rank 1 once a checkpoint has been written."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if list(checkpoints.glob("*.json")):
            ask = ["ps", "-o", "pid=", "--ppid", str(launcher)]
            children = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
            for pid in map(int, children.split()):
                if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    return pid
        time.sleep(0.01)
    raise AssertionError("no checkpoint was written")

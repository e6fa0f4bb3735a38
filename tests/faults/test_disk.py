"""A full disk and a folder without permission: code 2, one clear message, nothing already saved is lost."""

from __future__ import annotations

import ctypes
import json
import os
import resource

import killable
import pytest

import tiny
from attar.artifacts import load
from attar.run import log
from attar.run.checkpoint import Checkpoints


def run_dm(settings, home, *, limit=None, mortal=False):
    """Run DM by the command line's door in a warm process; return its exit code and what it said.

    Its files may not grow beyond `limit` bytes; `mortal` takes root's right to write anywhere.
    """
    home.mkdir(parents=True, exist_ok=True)
    said = home / "stderr"
    process = killable.context.Process(target=_work, args=(settings, str(home), limit, mortal, str(said)))
    process.start()
    process.join(60)
    return process.exitcode, said.read_text()


def _work(settings, home, limit, mortal, said):
    os.environ.update(ATTAR_HOME=home, ATTAR_CHECKPOINT_SECONDS="0", ATTAR_PROGRESS="off")
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    import torch

    from attar import cli

    torch.set_num_threads(1)
    if mortal and os.getuid() == 0:
        _obey_permissions()
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    cli.main(["run", "dm", *(f"{key}={value}" for key, value in settings.items())])


def _obey_permissions():
    """Drop the capabilities by which root passes over the permissions of files."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low and high words
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {**tiny.settings("dm"), "steps": 150, "data": tiny.write_data(folder / "data.npz")}


@pytest.fixture(scope="module")
def roomy(settings, tmp_path_factory):
    """The folder of a run that had room."""
    folder = tmp_path_factory.mktemp("roomy")
    code, said = run_dm({**settings, "out": folder / "run"}, folder / "home")
    assert (code, said) == (0, "")
    return folder / "run"


@pytest.mark.parametrize("victim", ["checkpoint", "metrics.jsonl", "report.html"])
def test_a_full_disk_loses_nothing_that_was_saved(settings, roomy, tmp_path, victim):
    """The first file that would be longer than a limit meets the full disk: this one, as all others are shorter."""
    limit = 2000 if victim == "checkpoint" else (roomy / victim).stat().st_size - 1500
    tight = tmp_path / "tight"
    code, said = run_dm({**settings, "out": tight}, tmp_path / "home", limit=limit)
    assert code == 2, said
    assert victim in said
    assert "the disk is full" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.rglob("*.tmp"))
    if victim == "metrics.jsonl":
        recipe = json.loads((tight / "recipe.json").read_text())["hash"]
        assert Checkpoints(tight / "checkpoints", recipe).furthest().place.step > 1
    if victim == "report.html":
        assert load(tight).fingerprint == load(roomy).fingerprint
    code, said = run_dm({**settings, "out": tight}, tmp_path / "home")
    assert (code, said) == (0, "")
    assert load(tight).fingerprint == load(roomy).fingerprint
    clocks = [[{**record, "time": 0} for record in log.read(folder / "metrics.jsonl")] for folder in (roomy, tight)]
    assert clocks[0] == clocks[1]


def test_a_folder_without_permission_is_refused_and_nothing_made(settings, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    code, said = run_dm({**settings, "out": locked / "run"}, tmp_path / "home", mortal=True)
    assert code == 2, said
    assert f"no permission to write {locked / 'run'}; choose another folder with out=FOLDER" in said
    assert said.count("\n") == 1
    assert list(locked.iterdir()) == []

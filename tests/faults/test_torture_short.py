"""Some seconds of `make torture`; and the torture itself notices what is lost."""

from __future__ import annotations

import shutil
import time

import pytest
import torture
from torture import FAULTS, Torture

SECONDS = 15


@pytest.mark.slow
def test_some_seconds_of_every_fault_lose_nothing(tmp_path, capsys):
    short = Torture(tmp_path, 5, ["dm", "mtt", "pca"])
    until, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        short.case(number)
        number += 1
    assert capsys.readouterr().err == ""
    assert sum(short.tries.values()) > 0
    assert sum(short.lost.values()) == 0


def begin(case):
    process = case.start({"die_writing": "/checkpoints/", "nth": 9, "part": 1.0, "renamed": True})
    case.end(process, torture.GOES_ON)


def lose_checkpoints(case):
    if case.reached()[case.run] > torture.NOTHING:
        shutil.rmtree(case.run / "checkpoints")
    else:
        begin(case)
    return True


def lose_a_log_line(case):
    begin(case)
    path = case.run / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    return True


@pytest.mark.parametrize("plant", [lose_checkpoints, lose_a_log_line])
def test_the_torture_notices_what_is_lost(tmp_path, monkeypatch, capsys, plant):
    monkeypatch.setattr(torture, "FAULTS", {"planted": plant})
    planted = Torture(tmp_path, 0, ["dm"])
    planted.case(0)
    assert planted.lost["planted"] >= 1
    assert "LOST in case 0 (dm) behind planted" in capsys.readouterr().err
    assert f"| planted | {planted.tries['planted']} |" in planted.table()


def test_every_fault_of_the_table_has_a_name_of_its_own():
    assert len(FAULTS) == len(set(FAULTS.values())) == 12

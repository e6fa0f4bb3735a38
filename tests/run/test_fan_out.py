"""A fan-out gives its results in order whoever computed them, and outlives the worker processes that die in it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from attar.errors import AttarError
from attar.run.fan_out import fan_out


def draw(item):
    time.sleep(0.02)
    return item, torch.rand(2).tolist()


def die_once(item):
    """Die by SIGKILL in a worker, once for each mark that is not there yet."""
    number, mark, parent = item
    if os.getpid() == parent:
        time.sleep(0.3)  # leave something to the worker
    elif mark and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number, torch.rand(2).tolist()


def die_always(item):
    parent, mark = item
    if os.getpid() != parent:
        with Path(mark).open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)


def fail(item):
    raise ValueError(f"item {item} is bad")


@pytest.fixture(autouse=True, scope="module")
def _no_worker_stays():
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(max_workers=1).shutdown(wait=True, kill_workers=True)


def test_two_processes_give_what_one_gives_in_the_order_of_the_items():
    alone = fan_out("draw", draw, range(5), workers=1, threads=1)
    assert fan_out("draw", draw, range(5), workers=2, threads=1) == alone
    assert [item for item, _ in alone] == list(range(5))
    assert len({tuple(numbers) for _, numbers in alone}) == 5


def test_an_item_whose_worker_was_killed_is_run_again_and_said(tmp_path, capsys):
    marks = [None, str(tmp_path / "one"), None, str(tmp_path / "two"), None, None]
    items = [(number, mark, os.getpid()) for number, mark in enumerate(marks)]
    whole = fan_out("draw", die_once, [(number, None, os.getpid()) for number in range(6)], workers=1, threads=1)
    assert fan_out("experts", die_once, items, workers=2, threads=1) == whole
    killed = len(list(tmp_path.iterdir()))
    assert killed >= 1
    assert capsys.readouterr().err.count("of 'experts' died and the item is run again") == killed


def test_an_item_that_kills_every_worker_is_given_up_and_never_run_here(tmp_path):
    mark = tmp_path / "deaths"
    with pytest.raises(AttarError, match=r"item \d of 2 of 'experts' is given up: its worker process died 3 times"):
        fan_out("experts", die_always, [(os.getpid(), str(mark))] * 2, workers=2, threads=1)
    assert mark.read_text() == "xxx"
    assert [item for item, _ in fan_out("draw", draw, range(3), workers=2, threads=1)] == [0, 1, 2]


def test_an_error_in_an_item_ends_the_fan_out():
    with pytest.raises(ValueError, match="is bad"):
        fan_out("fail", fail, range(4), workers=2, threads=1)

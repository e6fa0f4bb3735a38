"""Signals, the time budget, the lock, and folders that cannot be written."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from toy import Toy

from attar.errors import AttarError, Interrupted, RecipeError
from attar.run import Run, log


def finish(start, folder, **settings):
    with start(folder, **settings) as run:
        artifact = Toy()(run)
        return artifact.fingerprint, run.partial


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_waits_for_the_step_saves_and_leaves_with_its_code(start, number, code):
    def method(run, stop=None):
        x = run.keep("x", torch.zeros(1))
        for step in run.loop("only", 10):
            if step == stop:
                os.kill(os.getpid(), number)
            x += torch.rand(1)  # the step is finished all the same
        return float(x)

    with start("whole") as run:
        whole = method(run)
    with (
        pytest.raises(Interrupted, match="step 5 of 10 of 'only', all saved") as caught,
        start("cut", checkpoint_seconds=1e9) as run,
    ):
        method(run, 4)  # fmt: skip
    assert caught.value.exit_code == code
    with start("cut") as run:
        assert run._checkpoints.latest("only").place.step == 5
        assert method(run) == whole


def test_the_second_signal_ends_at_once(start):
    reached = []

    def method(run):
        for step in run.loop("only", 10):
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(("first", step))
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(("second", step))

    with pytest.raises(Interrupted), start() as run:
        method(run)
    assert reached == [("first", 0)]


def test_a_signal_outside_loops_ends_at_once_with_what_was_saved(start):
    def method(run, stop=False):
        x = run.keep("x", torch.zeros(1))
        for _ in run.loop("first", 3):
            x += torch.rand(1)
        if stop:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal was not honoured")
        return float(x)

    with pytest.raises(Interrupted) as caught, start() as run:
        method(run, stop=True)
    assert caught.value.exit_code == 143
    with start() as run:
        assert run._checkpoints.latest("first").place.finished
        assert method(run) == method_value(start)


def method_value(start):
    with start("whole") as run:
        x = torch.zeros(1)
        for _ in run.loop("first", 3):
            x += torch.rand(1)
        return float(x)


def test_a_signal_while_the_last_step_is_saved_is_not_lost(start, monkeypatch):
    def method(run):
        save = run._checkpoints.save

        def interrupted(loop, place, state, *, log_bytes):
            save(loop, place, state, log_bytes=log_bytes)
            if place.finished:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(run._checkpoints, "save", interrupted)
        for _ in run.loop("only", 3):
            pass

    with pytest.raises(Interrupted), start() as run:
        method(run)
    with start() as run:
        assert run._checkpoints.latest("only").place.finished


def test_handlers_are_put_back_and_other_threads_leave_them_alone(start):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with start():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    failed = []

    def work():
        try:
            finish(start, "thread")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


def test_a_run_cut_by_its_budget_is_partial_and_completed_later_equals_the_whole(start, tmp_path):
    whole, _ = finish(start, "whole")
    for _ in range(3):
        cut, partial = finish(start, "cut", time=1e-9)
        assert partial
        assert cut != whole
    assert finish(start, "cut") == (whole, False)
    steps = [(r["loop"], r.get("step")) for r in log.read(tmp_path / "cut" / "metrics.jsonl")]
    assert len(steps) == len(set(steps)) == 13


def test_a_cut_run_saves_nothing_of_what_follows_the_cut(start):
    finish(start, "cut", time=1e-9)
    with start("cut") as run:
        assert run._checkpoints.latest("first").place.step == 1
        assert run._checkpoints.latest("second") is None


def test_a_budget_that_ends_with_the_work_cuts_nothing(start):
    with start(time=1e-9) as run:
        for _ in run.loop("only", 1):
            pass
        for step in run.loop("finishes", 5):
            assert step == 0
            run.finish("converged")
        assert not run.partial


def test_a_second_process_is_refused_and_a_dead_ones_lock_does_not_count(start, tmp_path):
    child = os.fork()
    if child == 0:
        try:
            with start():
                (tmp_path / "ready").touch()
                signal.pause()
        finally:
            os._exit(0)
    try:
        while not (tmp_path / "ready").exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        with pytest.raises(AttarError, match="another process is working in"), start():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with start() as run:
        assert not run.resumed


def test_a_path_through_a_file_is_refused_clearly(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AttarError, match="a part of that path is a file"), Run(tmp_path / "file" / "run"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_the_checkpoint_interval_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CHECKPOINT_SECONDS", "0.5")
    assert Run(tmp_path / "run").checkpoint_seconds == 0.5
    assert Run(tmp_path / "run", checkpoint_seconds=7.0).checkpoint_seconds == 7.0
    monkeypatch.setenv("ATTAR_CHECKPOINT_SECONDS", "often")
    with pytest.raises(RecipeError, match="ATTAR_CHECKPOINT_SECONDS='often' is not a number of seconds"):
        Run(tmp_path / "run")

"""The first and the last moments of a run: who is refused takes nothing away, and a kill leaves no dead end."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

import tiny
from attar import api, run_folders
from attar.errors import AttarError, Interrupted
from attar.run import Run, guards


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    return {**tiny.settings("random"), "data": tiny.write_data(tmp_path / "data.npz"), "out": tmp_path / "new" / "run"}


def test_a_process_that_is_refused_leaves_the_folder_to_the_one_that_works_in_it(settings, monkeypatch):
    """Both saw no folder; the other one has made it since and holds its lock, but has saved nothing yet."""
    folder = settings["out"]
    enter = Run.__enter__
    with contextlib.ExitStack() as other:

        def enter_second(run):
            folder.mkdir(parents=True)
            other.enter_context(guards.locked(folder))
            (folder / "metrics.jsonl").touch()
            return enter(run)

        monkeypatch.setattr(Run, "__enter__", enter_second)
        with pytest.raises(AttarError, match="another process is working in"):
            api.run("random", **settings)
        assert (folder / "metrics.jsonl").exists()


def test_a_run_killed_while_it_wrote_its_report_gets_one_at_the_next_start(settings):
    api.run("random", **settings)
    (settings["out"] / "report.html").rename(settings["out"] / ".report.html.17.tmp")
    assert api.run_result("random", **settings).reused
    assert (settings["out"] / "report.html").exists()
    assert not list(settings["out"].rglob(".*.tmp"))


def test_a_signal_that_comes_while_the_report_is_written_waits_for_it(settings, monkeypatch):
    report = api._report

    def report_under_a_signal(folder, data):
        os.kill(os.getpid(), signal.SIGINT)
        report(folder, data)

    monkeypatch.setattr(api, "_report", report_under_a_signal)
    with pytest.raises(Interrupted):
        api.run("random", **settings)
    assert (settings["out"] / "report.html").exists()
    assert api.run_result("random", **settings).reused


@pytest.mark.parametrize("left", [[".lock"], [".lock", "metrics.jsonl", ".recipe.json.17.tmp"]])
def test_a_run_killed_before_it_wrote_its_recipe_starts_again(settings, left):
    settings["out"].mkdir(parents=True)
    for name in left:
        (settings["out"] / name).touch()
    assert api.run_result("random", **settings).state == "finished"
    assert not list(settings["out"].glob(".*.tmp"))


def test_a_recipe_that_another_process_writes_between_two_looks_is_seen(settings, monkeypatch):
    api.run("random", **settings)
    read = run_folders.read
    looks = []

    def read_a_moment_earlier(folder, name, default=None):
        looks.append(name)
        return None if looks == ["recipe.json"] else read(folder, name, default)

    monkeypatch.setattr(run_folders, "read", read_a_moment_earlier)
    assert api.run_result("random", **settings).reused


def test_a_folder_with_anything_else_is_still_refused(settings):
    settings["out"].mkdir(parents=True)
    (settings["out"] / "metrics.jsonl").write_text("mine\n")
    with pytest.raises(AttarError, match="is no run folder"):
        api.run("random", **settings)
    assert (settings["out"] / "metrics.jsonl").read_text() == "mine\n"

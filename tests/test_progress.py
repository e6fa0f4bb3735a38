"""Progress: plain lines where nobody watches, a bar on a terminal, nothing for short work or when it is off."""

from __future__ import annotations

import io
import sys

import pytest

from attar import progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.delenv("ATTAR_PROGRESS", raising=False)
    return Clock(monkeypatch)


def work(clock, steps, seconds):
    with progress.task("dm match", 0, steps) as show:
        for step in range(steps):
            clock.now += seconds
            show(step + 1, f"loss {step}")


def test_plain_lines_tell_steps_rate_and_time_left(clock, capsys):
    work(clock, 40, 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dm match: 21/40 · 2.0 steps/s · 0:09 left · loss 20"
    assert lines[-1] == "dm match: 40/40 · 2.0 steps/s · 0:00 left · loss 39"
    assert len(lines) == 2


def test_slow_steps_are_told_in_seconds_each(clock, capsys):
    work(clock, 3, 90.0)
    assert capsys.readouterr().err.splitlines()[0] == "dm match: 1/3 · 90.0 s/step · 3:00 left · loss 0"


def test_a_resumed_loop_counts_its_rate_from_where_it_started(clock):
    task = progress.Task("x", 90, 100)
    clock.now += 10
    task.done = 95
    assert task.text() == "95/100 · 2.0 s/step · 0:10 left"


def test_short_work_shows_nothing(clock, capsys):
    work(clock, 3, 0.1)
    assert capsys.readouterr().err == ""


def test_progress_can_be_switched_off(clock, capsys, monkeypatch):
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    work(clock, 40, 10)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """Put a terminal in the place of standard error, from within a test: before it, pytest would replace it again."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return made


def test_a_terminal_gets_a_bar_that_ends_with_its_loop(clock, monkeypatch):
    made = terminal(monkeypatch)
    work(clock, 40, 0.5)
    assert "40/40 · 2.0 steps/s · 0:00 left · loss 39" in made.getvalue()
    assert progress._live == []


def test_a_nested_bar_leaves_the_outer_one_standing(clock, monkeypatch):
    made = terminal(monkeypatch)
    with progress.task("outer", 0, 2) as show:
        clock.now += 5
        show(1)
        work(clock, 10, 1.0)
        assert [bar.description for bar in progress._live[0].tasks] == ["outer", "dm match"]
        progress.tell("a word [in between]")
    assert progress._live == []
    assert "attar: a word [in between]" in made.getvalue()


def test_a_word_is_one_line_on_standard_error(capsys):
    progress.tell("checkpoint x is damaged")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "attar: checkpoint x is damaged\n")

"""A run that was stopped at any step goes on to the same bytes: state, log and global generators included."""

from __future__ import annotations

import itertools
import json
import signal

import pytest
import safetensors.torch
import torch
from torch import nn
from toy import Toy

from attar import files
from attar.errors import DamagedFile
from attar.run import SGD, AdamW, Decay, log
from attar.run.checkpoint import Checkpoints, Place


class Killed(BaseException):
    """Stands for a process that is gone: nothing catches it."""


def finish(start, folder, method=None, **settings):
    with start(folder, **settings) as run:
        return (method or Toy())(run)


def stop_after(start, folder, steps, method=None, **settings):
    """Start the method and leave it, as if killed, in the middle of its step number `steps` (over all loops)."""
    counter = itertools.count()

    def work():
        with start(folder, **settings) as run:
            begin = run._begin

            def counting(step, total):
                if next(counter) == steps:
                    raise Killed
                begin(step, total)

            run._begin = counting
            (method or Toy())(run)

    with pytest.raises(Killed):
        work()


def metrics(folder):
    """The log without its clock."""
    return [{k: v for k, v in record.items() if k != "time"} for record in log.read(folder / "metrics.jsonl")]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adamw"])
@pytest.mark.parametrize("interval", [0.0, 1e9], ids=["every step", "end states only"])
def test_a_run_stopped_at_every_step_in_turn_ends_as_an_untouched_one(start, tmp_path, optimizer, interval):
    method = Toy(optimizer={"kind": optimizer, "lr": 0.05})
    whole = finish(start, "whole", method)
    folder = f"cut {interval}"
    for steps in (1, 2, 3, 5) if interval == 0 else (3, 5, 9, 4):
        stop_after(start, folder, steps, method, checkpoint_seconds=interval)
    assert finish(start, folder, method).fingerprint == whole.fingerprint
    assert metrics(tmp_path / folder) == metrics(tmp_path / "whole")


def test_a_killed_start_goes_on_where_it_was(start, tmp_path):
    stop_after(start, "run", 4)
    with start("run") as run:
        run.keep("total", torch.zeros(2))
        run.learner("net", nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)), AdamW(),
                    ema={"slow": Decay(decay=0.9)})  # fmt: skip
        run.learner("pixels", torch.zeros(3, 4), SGD())
        seen = run.keep("seen", [])
        assert run.resumed
        assert next(iter(run.loop("first", 6))) == 4
        assert seen.value == [0, 1, 2, 3]


def test_the_log_holds_every_step_once_in_order_after_many_kills(start, tmp_path):
    for steps in (2, 2, 5, 1, 3):
        stop_after(start, "run", steps, checkpoint_seconds=1e9 if steps == 5 else 0.0)
    finish(start, "run")
    records = metrics(tmp_path / "run")
    assert [(r["loop"], r.get("step")) for r in records] == [
        *(("first", step) for step in range(6)),
        (None, None),
        *(("second", step) for step in range(6)),
    ]


@pytest.mark.parametrize("which", ["newest", "all of the first loop", "all"])
def test_damaged_checkpoints_are_skipped_with_one_clear_line_each(start, tmp_path, which, capsys):
    whole = finish(start, "whole")
    stop_after(start, "run", 9)
    files = sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    chosen = {"newest": files[-1:], "all of the first loop": files[:2], "all": files}[which]
    for path in chosen:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    assert finish(start, "run").fingerprint == whole.fingerprint
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(chosen)
    for line, path in zip(sorted(said), sorted(chosen), strict=True):
        assert line.startswith(f"attar: checkpoint {path.with_suffix('.json')} is damaged and is skipped")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{}", '{"digest": 1}', "nonsense", "\x00\x01"])
def test_a_manifest_that_is_not_one_is_skipped(start, tmp_path, text, capsys):
    whole = finish(start, "whole")
    stop_after(start, "run", 3)
    newest = max((tmp_path / "run" / "checkpoints").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_text(text)
    assert finish(start, "run").fingerprint == whole.fingerprint
    assert "is damaged and is skipped" in capsys.readouterr().err


def test_a_manifest_changed_by_hand_is_not_believed(start, tmp_path, capsys):
    stop_after(start, "run", 3)
    newest = max((tmp_path / "run" / "checkpoints").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    manifest = json.loads(newest.read_text())
    manifest["place"][1] = 5
    newest.write_text(json.dumps(manifest))
    finish(start, "run")
    assert "does not match its own digest" in capsys.readouterr().err


def test_checkpoints_of_another_recipe_are_not_used(start, capsys):
    stop_after(start, "run", 3)
    with start("run", recipe="another") as run:
        assert not run.resumed
    assert "another recipe" in capsys.readouterr().err


def test_two_checkpoints_of_a_loop_are_kept_and_leftovers_removed(start, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / ".artifact.77.tmp").mkdir()
    (folder / ".artifact.77.tmp" / "tensors.safetensors").write_bytes(b"half")
    (folder / "checkpoints" / ".first-00000001.safetensors.77.tmp").write_bytes(b"half")
    (folder / "checkpoints" / "first-00000099.safetensors").write_bytes(b"killed before its manifest")
    stop_after(start, "run", 10)
    names = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    loops = ["first-00000005", "first-00000006-end", "second-00000003", "second-00000004"]
    assert names == sorted(f"{name}.{suffix}" for name in loops for suffix in ("json", "safetensors"))
    assert not list(folder.glob(".*.tmp"))


def test_a_loop_left_by_break_is_repeated_while_later_checkpoints_still_count(start, tmp_path):
    def method(run, stop_in_second=None, stop_in_first=None):
        x = run.keep("x", torch.zeros(1, dtype=torch.float64))
        for step in run.loop("first", 10):
            x += torch.rand(1)
            run.log(first=float(x))
            if step == stop_in_first:
                raise Killed
            if step == 6:
                break
        for step in run.loop("second", 8):
            x += torch.rand(1)
            run.log(second=float(x))
            if step == stop_in_second:
                raise Killed
        return float(x)

    with start("whole") as run:
        whole = method(run)
    for stops in ({"stop_in_second": 4}, {"stop_in_first": 6}, {"stop_in_second": 6}, {"stop_in_first": 6}):
        with pytest.raises(Killed), start("cut") as run:
            method(run, **stops)
    with start("cut") as run:
        assert run._checkpoints.latest("second").place.step == 6
        assert method(run) == whole
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_loop_ended_by_finish_ends_at_that_step_however_it_was_killed(start, monkeypatch):
    def method(run):
        x = run.keep("x", torch.zeros(1))
        for step in run.loop("only", 10):
            x += 1
            if step == 3:
                run.finish("converged")
        return float(x)

    with start("run") as run:
        save = run._checkpoints.save

        def dying(loop, place, state, *, log_bytes):
            save(loop, place, state, log_bytes=log_bytes)
            if place.step == 4:
                raise Killed  # straight behind the first checkpoint that holds the last step

        monkeypatch.setattr(run._checkpoints, "save", dying)
        with pytest.raises(Killed):
            method(run)
    with start("run") as run:
        assert method(run) == 4.0


def test_break_leaves_nothing_of_its_step_to_the_next_loop(start, tmp_path):
    with start() as run:
        learner = run.learner("w", torch.ones(1), SGD(lr=0.1))
        for _ in run.loop("first", 3):
            run.log(stray=1.0)
            learner.update(learner.target.square().sum())
            break
        learner.update(learner.target.square().sum())  # between loops: nobody's step
        for _ in run.loop("second", 1):
            run.log(own=2.0)
    assert [set(r) - {"time"} for r in log.read(tmp_path / "run" / "metrics.jsonl")] == [{"loop", "step", "own"}]


def test_gradients_that_wait_for_their_step_survive(start):
    def method(run, stop=None):
        w = run.learner("w", torch.ones(2), SGD(lr=0.1, momentum=0.9))
        for step in run.loop("accumulate", 9):
            run.backward((w.target * torch.rand(2)).sum(), w)
            if step == stop:
                raise Killed
            if step % 3 == 2:
                w.step()
        return w.target.tolist()

    with start("whole") as run:
        whole = method(run)
    for stop in (1, 2, 4, 7):
        with pytest.raises(Killed), start("cut") as run:
            method(run, stop)
    with start("cut") as run:
        assert method(run) == whole


def test_a_method_that_changed_between_starts_is_told_so(start):
    def method(run, kept):
        run.keep(kept, torch.zeros(1))
        for step in run.loop("only", 4):
            if step == 2:
                raise Killed

    with pytest.raises(Killed), start() as run:
        method(run, "x")
    with start() as run, pytest.raises(RuntimeError, match="'y' is not in checkpoint"):
        method(run, "y")


def test_what_no_checkpoint_can_hold_is_refused_when_it_is_kept(start):
    with start() as run, pytest.raises(TypeError, match=r"'bag.value' is a set; keep tensors and JSON values"):
        run.keep("bag", {1, 2})


def test_names_and_nesting_are_checked(start):
    with start() as run:
        run.keep("x", torch.zeros(1))
        with pytest.raises(RuntimeError, match="registered twice"):
            run.keep("x", torch.zeros(1))
        for _ in run.loop("a", 1):
            with pytest.raises(RuntimeError, match="loops do not nest"):
                next(run.loop("b", 1))
            with pytest.raises(RuntimeError, match="register it before the loop"):
                run.keep("late", 0)
        with pytest.raises(RuntimeError, match="give every loop its own name"):
            next(run.loop("a", 1))


def test_loops_whose_names_look_alike_as_files_are_kept_apart(start):
    def method(run, stop=False):
        x = run.keep("x", torch.zeros(1))
        for name in ("a b", "a_b", "a/b"):
            for _ in run.loop(name, 2):
                x += 1
        if stop:
            raise Killed
        return float(x)

    with pytest.raises(Killed), start() as run:
        method(run, stop=True)
    with start() as run:
        assert method(run) == 6.0


def test_tensors_that_do_not_read_are_damage(tmp_path):
    from attar.files import load_tensors

    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(DamagedFile):
        load_tensors(tmp_path / "x.safetensors")
    with pytest.raises(DamagedFile):
        load_tensors(tmp_path / "missing.safetensors")


def test_an_older_manifest_does_not_count_with_newer_tensors(tmp_path, monkeypatch):
    place, state = Place(1, 3, False), {"x": {"value": torch.ones(2)}}
    Checkpoints(tmp_path, "recipe").save("loop", place, state, log_bytes=200)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])  # so the run goes back, and comes to this place with another log
    written = files.save_tensors

    def killed_behind(*given):
        written(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_tensors", killed_behind)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path, "recipe").save("loop", place, state, log_bytes=199)
    assert Checkpoints(tmp_path, "recipe").furthest() is None


def test_a_signal_while_tensors_are_read_waits_until_they_are(tmp_path, monkeypatch):
    files.save_tensors(tmp_path / "x.safetensors", {"x": torch.ones(2)})
    read, seen = safetensors.torch.load_file, []

    def interrupted(path):
        signal.raise_signal(signal.SIGINT)
        seen.append(read(path))
        return seen[-1]

    monkeypatch.setattr(safetensors.torch, "load_file", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    try:
        with pytest.raises(KeyboardInterrupt):
            files.load_tensors(tmp_path / "x.safetensors")
        assert len(seen) == 1
        with pytest.raises(KeyboardInterrupt):  # the handler stands where it was
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)

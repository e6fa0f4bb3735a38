"""Stages: shared, resumable, keyed by everything that changes their numbers and by nothing else."""

from __future__ import annotations

import json
import signal
from typing import ClassVar

import pytest
import torch
from torch import nn
from toy import selection

from attar import files
from attar.artifacts import Selection
from attar.errors import Interrupted
from attar.run import SGD, Optimizer, Plan, Run, stage
from attar.run.stage import execute, fingerprint, stage_key
from attar.spec import method

CALLS = []


@method
class Teacher:
    """Draws numbers, step by step."""

    version: ClassVar = 1
    presets: ClassVar = {"small": {}}

    steps: int = 4
    optimizer: Optimizer = SGD(lr=0.1)

    def __call__(self, run: Run, *, data: object = None) -> Selection:
        CALLS.append(run.seed)
        x = run.keep("x", torch.zeros(3))
        x += torch.rand(3, generator=run.rng("start")) + torch.rand(3)
        for step in run.loop("train", self.steps):
            x += torch.rand(3, generator=run.rng("x", step)) + torch.rand(3)
            if CALLS[-1] == "die at 2" and step == 2:
                raise KeyboardInterrupt
        return selection(x)


@pytest.fixture(autouse=True)
def _calls():
    CALLS.clear()


def cached(tmp_path):
    return sorted(path for path in (tmp_path / "home" / "stages").iterdir() if path.is_dir())


def test_a_stage_runs_once_for_all_runs_and_all_their_seeds(start, tmp_path):
    made = []
    for seed in (0, 1, 2):
        with start(f"run {seed}", seed=seed) as run:
            made.append(run.stage("teacher", Teacher(), data="digits").fingerprint)
            assert run.parents == {"teacher": made[-1]}
    assert len(set(made)) == 1
    assert len(CALLS) == 1
    assert len(cached(tmp_path)) == 1
    assert not (cached(tmp_path)[0] / "checkpoints").exists()


def test_copies_and_seeds_are_other_stages(start):
    with start("a", copy=1) as run:
        copied = run.stage("teacher", Teacher()).fingerprint
    with start("b") as run:
        plain = run.stage("teacher", Teacher()).fingerprint
        seeded = run.stage("teacher", Teacher(), seed=1).fingerprint
    assert len({copied, plain, seeded}) == 3


def test_a_seeded_stage_is_the_run_of_that_seed_and_a_shared_one_draws_apart(start):
    with start("alone", seed=5) as run:
        alone = execute(run, Teacher(), {}).fingerprint
    with start("parent", seed=0) as run:
        own = torch.rand(3, generator=run.rng("start"))
        assert run.stage("teacher", Teacher(), seed=5).fingerprint == alone
        run.stage("shared", Teacher(steps=0))
    with start("zero", seed=0) as run:
        assert torch.equal(torch.rand(3, generator=run.rng("start")), own)
    with start("shared", seed=0, scope=["test_stages:Teacher"]) as run:
        assert not torch.equal(torch.rand(3, generator=run.rng("start")), own)


def test_the_code_behind_a_stage_draws_alike_whether_it_ran_or_was_cached(start):
    drawn = []
    for folder in ("a", "b"):
        with start(folder) as run:
            before = torch.rand(4)
            run.stage("teacher", Teacher())
            drawn.append(torch.rand(4))
            for _ in run.loop("own", 1):
                inside = torch.rand(4)
                run.stage("in a step", Teacher(steps=2))
                drawn.append(torch.rand(4))
                assert not torch.equal(inside, drawn[-1])
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(before, drawn[0])


def test_the_key_holds_all_that_changes_numbers():
    class Newer(Teacher):
        version: ClassVar = 2

    plan = Plan()
    keys = {
        "plain": stage_key(Teacher(), None, {"data": "digits"}, plan),
        "field": stage_key(Teacher(steps=5), None, {"data": "digits"}, plan),
        "nested field": stage_key(Teacher(optimizer=SGD(lr=0.2)), None, {"data": "digits"}, plan),
        "seed": stage_key(Teacher(), 0, {"data": "digits"}, plan),
        "copy": stage_key(Teacher(), None, {"data": "digits"}, plan, copy=1),
        "input": stage_key(Teacher(), None, {"data": "fashion-mnist"}, plan),
        "no input": stage_key(Teacher(), None, {}, plan),
        "method or version": stage_key(Newer(), None, {"data": "digits"}, plan),
        "threads": stage_key(Teacher(), None, {"data": "digits"}, Plan(threads=2)),
        "precision": stage_key(Teacher(), None, {"data": "digits"}, Plan(precision="bfloat16")),
        "device": stage_key(Teacher(), None, {"data": "digits"}, Plan(device="cuda")),
        "chunk": stage_key(Teacher(), None, {"data": "digits"}, Plan(chunk=32)),
    }
    assert len(set(keys.values())) == len(keys)
    same = stage_key(Teacher(), None, {"data": "digits"}, Plan(workers=2))
    assert same == keys["plain"]
    assert stage_key(Teacher(), None, {}, Plan(device="cuda:0")) == stage_key(
        Teacher(), None, {}, Plan(device="cuda:1")
    )


def test_inputs_are_told_apart_by_content(tiny_images):
    one, other = tiny_images(seed=1), tiny_images(seed=2)
    assert fingerprint(one) == fingerprint(tiny_images(seed=1)) != fingerprint(other)
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    before = fingerprint(net)
    with torch.no_grad():
        net.bias[0] += 1e-6
    assert fingerprint(net) != before
    assert fingerprint(SGD(lr=0.1)) != fingerprint(SGD(lr=0.2))
    with pytest.raises(TypeError, match="it has no fingerprint"):
        fingerprint(lambda: None)


def test_a_killed_stage_goes_on(start, tmp_path, monkeypatch):
    with start("whole") as run:
        whole = run.stage("teacher", Teacher()).fingerprint
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "another"))
    CALLS.clear()

    class Dying(list):
        def append(self, seed):
            super().append("die at 2")

    monkeypatch.setattr("test_stages.CALLS", Dying())
    with pytest.raises(KeyboardInterrupt), start("cut") as run:
        run.stage("teacher", Teacher())
    monkeypatch.undo()
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "another"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    with start("cut again") as run:
        assert run.stage("teacher", Teacher()).fingerprint == whole
    (folder,) = [path for path in (tmp_path / "another" / "stages").iterdir() if path.is_dir()]
    record = json.loads((folder / "run.json").read_text())
    assert (record["state"], record["starts"]) == ("finished", 2)


def test_a_stage_cut_by_the_time_budget_is_never_cached_and_completed_later(start, tmp_path):
    with start("whole") as run:
        whole = run.stage("teacher", Teacher(), seed=1).fingerprint
    for path in cached(tmp_path):
        path.rename(tmp_path / "kept aside")
    with start("cut", time=1e-9) as run:
        cut = run.stage("teacher", Teacher(), seed=1).fingerprint
        assert run.partial
    assert cut != whole
    assert json.loads((cached(tmp_path)[0] / "run.json").read_text())["state"] == "partial"
    with start("again") as run:
        assert run.stage("teacher", Teacher(), seed=1).fingerprint == whole
        assert not run.partial


@pytest.mark.parametrize("victim", ["artifact/tensors.safetensors", "artifact/artifact.json", "run.json"])
def test_a_damaged_cached_stage_is_made_again_and_said(start, tmp_path, victim, capsys):
    with start("a") as run:
        whole = run.stage("teacher", Teacher()).fingerprint
    path = cached(tmp_path)[0] / victim
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(bytes(data))
    with start("b") as run:
        assert run.stage("teacher", Teacher()).fingerprint == whole
    said = capsys.readouterr().err
    assert said.startswith("attar: a cached stage is damaged and is made again")
    assert said.count("\n") == 1
    assert len(CALLS) == 2


@pytest.mark.parametrize("place", ["load", "files"])
def test_a_signal_while_a_cached_stage_is_read_is_no_damage(start, tmp_path, monkeypatch, place):
    with start("a") as run:
        run.stage("teacher", Teacher())
    before, places = cached(tmp_path), {"load": (stage, "load"), "files": (stage.files, "read_object")}

    def stopped(*given: object) -> None:
        raise Interrupted("stopped", signal.SIGTERM)

    with start("b") as run, monkeypatch.context() as patch:
        patch.setattr(*places[place], stopped)
        with pytest.raises(Interrupted):
            run.stage("teacher", Teacher())
    assert cached(tmp_path) == before
    assert len(CALLS) == 1


def test_run_json_tells_how_a_run_went(start, tmp_path):
    with start() as run:
        artifact = execute(run, Teacher(), {})
    record = files.read_json(tmp_path / "run" / "run.json")
    assert record["state"] == "finished"
    assert record["fingerprint"] == artifact.fingerprint
    assert record["provenance"]["versions"]["torch"] == torch.__version__


@method
class Nesting:
    """Uses a shared stage."""

    version: ClassVar = 1
    presets: ClassVar = {"small": {}}

    def __call__(self, run: Run) -> Selection:
        return run.stage("teacher", Teacher())


def test_a_shared_stage_inside_a_stage_belongs_to_the_copy_of_the_run(tmp_path):
    for copy in (0, 2):
        with Run(tmp_path / f"run {copy}", plan=Plan(), copy=copy) as run:
            run.stage("nesting", Nesting(), seed=7)
    assert CALLS == [0, 2]  # the second copy is not served with what the first one used

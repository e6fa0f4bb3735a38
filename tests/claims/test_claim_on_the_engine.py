"""A small claim through the real engine: runs, stages, validation splits, timing out, two processes."""

import functools
import pickle
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from attar import nets
from attar.claims import jobs
from attar.claims.claim import Claim, Contrast
from attar.claims.harness import run_claim
from attar.claims.jobs import Job, run_arm
from attar.data import sources
from attar.errors import NonFinite
from attar.methods.data.random import RandomSelection
from attar.metrics import accuracy
from attar.nets import MLP
from attar.run import SGD
from attar.train.training import predict


class MoreImages(Claim):
    """Five images a class teach more than one: sure to hold, and quick."""

    id = "more-images"
    title = "More images"
    says = "more is better"
    origin = "a pilot"
    primary = Contrast(method="five", baseline="one", at="30 updates", worst=0.1)
    expects = 0.10
    delta = 0.05
    seeds = 5
    grids: ClassVar = {"five": {"lr": [0.1]}, "one": {"lr": [0.1]}}
    currency = "updates"
    fixed = ("the test set",)
    source = quick_source = "digits"
    methods = ("random",)
    seen: ClassVar[list] = []

    def arm(self, run, name, seed, trial):
        splits = self.splits(run)
        self.seen.append((self.phase, splits.test.fingerprint))
        ipc = {"five": 5, "one": 1}[name]
        chosen = run.stage("choose", RandomSelection(ipc=ipc), seed=seed, data=splits.train)
        images, labels = splits.train.normalised(chosen.indices), splits.train.labels[chosen.indices]
        module = nets.fresh(MLP(), splits.train, run.rng("net"))
        student = run.learner("student", module, SGD(lr=trial["lr"]))
        for _ in run.loop("train", 30):
            student.update(torch.nn.functional.cross_entropy(module(images), labels))
            self.meter.add(updates=1, examples=len(labels), forward=5, backward=5)
        return {"accuracy": accuracy(predict(module, splits.test), splits.test.labels)}


class Diverging(MoreImages):
    def arm(self, run, name, seed, trial):
        raise NonFinite("loop 'train', step 3: the loss is not finite")


class Copied(MoreImages):
    copies = 3
    seeds = 6


class Slow(MoreImages):
    seconds_per_job: ClassVar = 0.0


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    MoreImages.seen.clear()


def job(cls, **changes):
    given = {"phase": "verdict", "arm": "one", "seed": 0, "source": "digits", "trial": {"lr": 0.1}, **changes}
    return Job(claim=f"{__name__}:{cls.__name__}", **given)


def test_a_claim_runs_through_the_engine_and_only_verdict_seeds_see_the_test_set(tmp_path):
    result = run_claim(MoreImages, folder=tmp_path / "results", workers=1, say=lambda line: None)
    assert result["verdict"] == "holds"
    assert result["methods"]["random"]["version"] == RandomSelection.version
    assert result["currencies"]["five"]["updates"] == 30
    held_out = sources.load("digits").test.fingerprint
    assert {phase for phase, seen in MoreImages.seen if seen == held_out} == {"verdict"}
    assert {phase for phase, seen in MoreImages.seen if seen != held_out} == {"tuning"}
    assert list((tmp_path / "home" / "claims").rglob("runs/*")) == []


def test_the_same_job_gives_the_same_numbers(tmp_path):
    first, second = (run_arm(job(MoreImages), tmp_path / name) for name in "ab")
    assert first["metrics"] == second["metrics"]
    assert first["costs"] == second["costs"]


def test_an_arm_that_diverges_or_runs_out_of_time_is_an_outcome(tmp_path):
    assert run_arm(job(Diverging), tmp_path / "a")["status"] == "diverged"
    slow = run_arm(job(Slow), tmp_path / "b")
    assert (slow["status"], slow["metrics"]) == ("timed-out", {})


def test_the_quick_form_runs_every_arm_on_the_engine():
    result = run_claim(MoreImages, quick=True, say=lambda line: None)
    assert set(result["arms"]) == {"five", "five_std", "one", "one_std"}
    assert {phase for phase, _ in MoreImages.seen} == {"quick"}
    held_out = sources.load("digits").test.fingerprint
    assert held_out not in {seen for _, seen in MoreImages.seen}


def test_an_arm_that_goes_on_counts_every_step_once(tmp_path, monkeypatch):
    whole = run_arm(job(MoreImages), tmp_path / "whole")

    def broken(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"{__name__}.predict", broken)  # the training loop is done and saved, the arm is not
        with pytest.raises(KeyboardInterrupt):
            run_arm(job(MoreImages), tmp_path / "cut")
    again = run_arm(job(MoreImages), tmp_path / "cut")
    assert again["costs"] == whole["costs"]
    assert again["metrics"] == whole["metrics"]


def test_copies_of_shared_stages_are_dealt_to_the_seeds_and_their_spread_is_told(tmp_path):
    said = []
    result = run_claim(Copied, folder=tmp_path / "results", workers=1, say=said.append)
    seeds = {str(copy): [s for s in range(6) if s % 3 == copy] for copy in range(3)}
    values = {arm: record["values"]["accuracy"] for arm, record in result["measured"].items()}
    expected = {c: sum(values["five"][s] - values["one"][s] for s in some) / 2 for c, some in seeds.items()}
    assert result["copies"] == pytest.approx(expected)
    assert sum("copy" in line for line in said) == 3
    assert any("updates (binding)" in line for line in said)


def test_a_job_can_be_sent_to_another_process():
    call = functools.partial(jobs._finish, run_arm, Path("folder"))
    sent, there = pickle.loads(pickle.dumps((call, job(MoreImages))))
    assert there == job(MoreImages)
    assert sent.args == call.args

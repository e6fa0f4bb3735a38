"""The bench of samplers: equal passes, lower distances rank first, and every arm runs in the quick form."""

import math

import numpy as np
import pytest

from attar import api, terminal
from attar.claims.bench import rank
from attar.claims.bench_samplers import ARMS, BUDGET, SamplerBench
from attar.claims.claim import check
from attar.claims.jobs import outcome, run_arm
from attar.errors import RecipeError

GAINS = {"teacher": 0.0, "consistency": 1.0, "rcm": 1.5}


def fewer(*arms):
    grids = {arm: SamplerBench.grids[arm] for arm in arms}
    names = {"__module__": SamplerBench.__module__, "__qualname__": "SamplerBench", "grids": grids}
    return type("SamplerBench", (SamplerBench,), names)


def fake(job, folder):
    """Distances fall with the gain and are least at lr 1e-3; seeds share most of their noise."""
    shared = np.random.default_rng(job.seed).normal(0, 0.1)
    away = abs(math.log(job.trial.get("lr", 1e-3) / 1e-3))
    found = {f"frechet_{n}": math.exp(3 - GAINS[job.arm] + shared + 0.1 * away) / n for n in (1, 2, 4)}
    return outcome(job, {**found, "accuracy_1": 0.5}, {}, 1.0, "finished")


@pytest.fixture
def home(tmp_path):
    """Return a home of each test: what one has judged is no other's."""
    return tmp_path / "home"


def test_the_nearest_ranks_first_and_differences_are_logarithms(tmp_path, capsys):
    result = rank(fewer(*GAINS), execute=fake, folder=tmp_path / "results", workers=1, say=lambda line: None)
    rows = {row["arm"]: row for row in result["arms"]}
    assert list(rows) == ["rcm", "consistency", "teacher"]
    assert rows["rcm"]["gain"] == pytest.approx(1.5)
    assert rows["rcm"]["over_kd"] == pytest.approx(0.5)
    assert rows["teacher"]["behind"] == pytest.approx(-1.5)
    assert rows["rcm"]["trial"] == {"lr": 1e-3}
    low, high = rows["rcm"]["frechet_4_interval"]
    assert low < rows["rcm"]["frechet_4"] < high
    assert result["metrics"] == ["frechet_1", "frechet_2", "frechet_4", "accuracy_1"]
    terminal.show_bench(result)
    assert "Samplers of few steps, 6 seeds" in capsys.readouterr().out


def test_every_arm_spends_the_budget_and_has_as_many_trials():
    check(SamplerBench)
    bench = SamplerBench("verdict")
    for name, arm in ARMS.items():
        method = bench.recipe(name, {"lr": 1e-3})
        updates = sum(phase.steps for phase in method.phases())
        assert arm.before + updates * (arm.forward + arm.backward) == pytest.approx(BUDGET, rel=0.01), name
        assert method.train.optimizer.lr == 1e-3


@pytest.mark.parametrize("arms", [("teacher", "consistency", "rectified-flow"), ("scm", "meanflow", "rcm", "dmd")])
def test_real_arms_run_in_the_quick_form(arms, capsys):
    result = rank(fewer(*arms), quick=True, execute=run_arm)
    assert [row["arm"] for row in result["arms"]] == list(arms)
    assert all(row["frechet_1"] > 0 for row in result["arms"])
    terminal.show_bench(result)
    assert "nothing is ranked" in capsys.readouterr().out


def test_the_bench_is_known_by_name():
    with pytest.raises(RecipeError, match="did you mean 'samplers'"):
        api.bench("sampler")

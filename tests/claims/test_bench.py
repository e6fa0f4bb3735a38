"""The bench: arms tuned alike and ranked by paired seeds, on an instantaneous fake; the real arms run in quick form."""

import json
import statistics

import numpy as np
import pytest

from attar import api, terminal
from attar.claims.bench import BASES, SUMS, ObjectiveBench, rank, ranked
from attar.claims.claim import check, trials
from attar.claims.jobs import outcome, run_arm
from attar.errors import RecipeError

GAINS = {"labels": 0.0, "kd": 0.04, "dist": 0.06, "ofd": -0.02}


def fewer(*arms):
    grids = {arm: ObjectiveBench.grids[arm] for arm in arms}
    return type(
        "ObjectiveBench",
        (ObjectiveBench,),
        {"__module__": ObjectiveBench.__module__, "__qualname__": "ObjectiveBench", "grids": grids},
    )


def fake(job, folder):
    """Accuracy peaks at lr 0.05; seeds share most of their noise."""
    shared = np.random.default_rng(job.seed).normal(0, 0.02)
    own = np.random.default_rng([job.seed, len(job.arm)]).normal(0, 0.002)
    accuracy = 0.7 + GAINS[job.arm] + shared + own - 0.02 * abs(np.log2(job.trial["lr"] / 0.05))
    accuracy -= 0.01 * abs(np.log(job.trial.get("strength", 1.0)))
    return outcome(job, {"accuracy": accuracy, "nll": 1 - accuracy}, {}, 1.0, "finished")


@pytest.fixture
def home(tmp_path):
    """Return a home of each test: what one has judged is no other's."""
    return tmp_path / "home"


def test_arms_are_tuned_alike_and_ranked_with_intervals(tmp_path):
    told = []
    result = rank(fewer(*GAINS), execute=fake, folder=tmp_path / "results", workers=1, say=told.append)
    rows = {row["arm"]: row for row in result["arms"]}
    assert list(rows) == ["dist", "kd", "labels", "ofd"]
    assert all(row["trial"]["lr"] == 0.05 for row in rows.values())
    assert {row["trial"].get("strength") for row in rows.values()} == {None, 1.0}
    assert len({len(tried) for tried in result["tuning"]["arms"].values()}) == 1
    assert all(trial["scores"] and len(trial["scores"]) == 1 for trial in result["tuning"]["arms"]["kd"])
    gain = rows["dist"]["gain"]
    low, high = rows["dist"]["gain_interval"]
    assert low < 0.06 < high
    assert gain == pytest.approx(0.06, abs=0.004)
    assert high - low < rows["dist"]["interval"][1] - rows["dist"]["interval"][0]  # pairs share a seed's noise
    assert rows["dist"]["over_kd"] == pytest.approx(0.02, abs=0.004)
    assert "over_kd" not in rows["kd"]
    assert rows["ofd"]["behind"] == pytest.approx(-0.08, abs=0.004)
    assert "behind" not in rows["dist"]
    assert rows["kd"]["nll"] == pytest.approx(1 - rows["kd"]["accuracy"])
    assert json.loads((tmp_path / "results" / "bench-kd.json").read_text()) == result
    assert "bench-kd.json" in told[-1]


def test_a_person_reads_a_table(tmp_path, capsys):
    terminal.show_bench(rank(fewer(*GAINS), execute=fake, folder=tmp_path, workers=1, say=lambda line: None))
    lines = capsys.readouterr().out.splitlines()
    assert "Objectives of model distillation, 8 seeds" in lines[0]
    assert [line.split()[0] for line in lines if "%" in line][:4] == ["dist", "kd", "labels", "ofd"]
    assert "lr=0.05 strength=1" in next(line for line in lines if line.split()[:1] == ["dist"])


def test_other_seeds_or_data_leave_the_kept_result_alone(tmp_path):
    result = rank(fewer("labels", "kd"), seeds=3, execute=fake, folder=tmp_path / "results", say=lambda line: None)
    assert result["seeds"] == 3
    assert not (tmp_path / "results").exists()
    for wrong in (1, 101):
        with pytest.raises(RecipeError, match="2 to 100 seeds"):
            rank(fewer("labels", "kd"), seeds=wrong, execute=fake)


def test_a_lost_arm_counts_with_the_worst_value():
    def of(arm, *accuracies):
        return [
            {"arm": arm, "status": "finished" if a else "diverged", "metrics": {"accuracy": a} if a else {}}
            for a in accuracies
        ]

    rows = ranked(
        ObjectiveBench,
        {"labels": of("labels", 0.7, 0.72), "kd": of("kd", 0.9, None), "dist": of("dist", 0.8, 0.82)},
        {"labels": {}, "kd": {}, "dist": {}},
    )
    assert [row["arm"] for row in rows] == ["dist", "labels", "kd"]
    assert rows[2]["accuracy"] == pytest.approx((0.9 + 0.1) / 2)
    assert (rows[2]["lost"], rows[0]["lost"]) == (1, 0)
    assert rows[0]["over_kd"] == pytest.approx(statistics.fmean([-0.1, 0.72]))


def test_the_bench_has_its_references_and_every_arm_as_many_trials():
    check(ObjectiveBench)
    assert {"labels", "kd", *BASES, *SUMS} == set(ObjectiveBench.grids)
    bench = ObjectiveBench("quick")
    for arm, grid in ObjectiveBench.grids.items():
        made = [bench.objective(arm, trial) for trial in trials(grid)]
        assert len({repr(one) for one in made}) == 6  # no trial is another one in disguise
    assert bench.objective("crd", {"lr": 0.05, "strength": 3.0}).weight == pytest.approx(2.4)
    assert bench.objective("label-smoothing", {"lr": 0.05, "strength": 0.3}).smoothing == pytest.approx(0.03)
    assert [type(part).__name__ for part in bench.objective("kd+crd", {}).objective] == [
        "KnowledgeDistillation",
        "ContrastiveKD",
    ]


def test_real_arms_run_in_the_quick_form():
    result = rank(fewer("labels", "kd", "kd+crd", "simkd", "tf-kd"), quick=True, execute=run_arm)
    assert result["quick"] is True
    assert [row["arm"] for row in result["arms"]] == ["labels", "kd", "kd+crd", "simkd", "tf-kd"]
    assert all(0 <= row["accuracy"] <= 1 for row in result["arms"])


def test_an_unknown_bench_is_told_the_known():
    with pytest.raises(RecipeError, match="unknown bench 'kds'; did you mean 'kd'"):
        api.bench("kds")

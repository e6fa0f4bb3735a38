"""The claim files of the recovery line obey the rules, and every arm runs through in its quick form."""

import pytest
import torch

from attar import ledger
from attar.claims.claim import trials
from attar.claims.jobs import Job, run_arm

IDS = [id for id in ("cda", "dwa", "infer", "hello", "pca") if ledger.exists(ledger.find(id).claim)]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")


@pytest.mark.parametrize("id", IDS)
def test_every_arm_runs_and_arms_of_one_budget_spend_alike(id, tmp_path):
    cls = ledger.claim_class(id)
    costs = {}
    for arm, grid in cls.grids.items():
        path = f"{cls.__module__}:{cls.__qualname__}"
        job = Job(claim=path, phase="quick", arm=arm, seed=100, source=cls.quick_source, trial=trials(grid)[0])
        result = run_arm(job, tmp_path / str(len(costs)))
        assert result["status"] == "finished"
        assert 0 <= result["metrics"]["accuracy"] <= 1, arm
        costs[arm] = result["costs"][cls.currency]
    for contrast in cls.contrasts():
        assert costs[contrast.method] <= 1.05 * costs[contrast.baseline], contrast
    assert min(costs.values()) > 0

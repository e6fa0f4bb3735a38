"""The claims of model distillation obey the rules, every arm runs through, and arms of one budget spend alike."""

import pytest

from attar import ledger
from attar.claims.claim import trials
from attar.claims.jobs import Job, run_arm

IDS = [
    id
    for id in ("quantized-distillation", "sla", "random-teachers", "deit-lt", "ferkd", "mtard", "diswot")
    if ledger.exists(ledger.find(id).claim)
]


@pytest.mark.parametrize("id", IDS)
def test_every_arm_runs_and_arms_of_one_budget_spend_alike(id, tmp_path):
    cls = ledger.claim_class(id)
    costs = {}
    for arm, grid in cls.grids.items():
        path = f"{cls.__module__}:{cls.__qualname__}"
        job = Job(claim=path, phase="quick", arm=arm, seed=100, source=cls.quick_source, trial=trials(grid)[0])
        result = run_arm(job, tmp_path / str(len(costs)))
        assert result["status"] == "finished"
        for contrast in (*cls.contrasts(), *cls.secondary):
            assert arm not in (contrast.method, contrast.baseline) or contrast.metric in result["metrics"]
        costs[arm] = result["costs"][cls.currency]
    for contrast in cls.contrasts():
        assert costs[contrast.method] <= 1.05 * costs[contrast.baseline], contrast
    assert min(costs.values()) > 0

"""The claims of samplers obey the rules, and every arm runs through in its quick form and spends alike."""

import pytest

from attar import ledger
from attar.claims.claim import trials
from attar.claims.jobs import Job, run_arm
from attar.claims.samplers import SamplerClaim

IDS = [
    row.id for row in ledger.rows() if ledger.exists(row.claim) and issubclass(ledger.claim_class(row.id), SamplerClaim)
]


@pytest.mark.parametrize("id", IDS)
def test_every_arm_runs_and_arms_of_one_budget_spend_alike(id, tmp_path):
    cls = ledger.claim_class(id)
    costs, found = {}, {}
    for arm, grid in cls.grids.items():
        path = f"{cls.__module__}:{cls.__qualname__}"
        job = Job(claim=path, phase="quick", arm=arm, seed=100, source=cls.quick_source, trial=trials(grid)[0])
        result = run_arm(job, tmp_path / str(len(costs)))
        assert result["status"] == "finished"
        costs[arm], found[arm] = result["costs"][cls.currency], result["metrics"]
    further = [cls.precondition.contrast] if cls.precondition else []
    for contrast in (*cls.contrasts(), *cls.secondary, *further):
        for arm in filter(None, (contrast.method, contrast.baseline)):
            assert contrast.metric in found[arm], contrast
    for contrast in (contrast for contrast in cls.contrasts() if contrast.baseline is not None):
        assert costs[contrast.method] <= 1.05 * costs[contrast.baseline], contrast
    assert min(costs.values()) > 0

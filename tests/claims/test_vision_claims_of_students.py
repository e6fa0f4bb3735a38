"""The claims of model distillation obey the rules, every arm runs through, and arms of one budget spend alike."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from attar import ledger
from attar.claims.claim import trials
from attar.claims.deit_lt import WeightedTokens
from attar.claims.jobs import Job, run_arm
from attar.methods.model.distillation_token import token_logits
from attar.train.objective import Batch, Progress

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


def test_late_weights_reach_both_tokens_of_a_vit_that_learns_labels():
    rng = torch.Generator().manual_seed(0)
    head, embedding = torch.nn.Linear(8, 3), torch.randn(6, 8, generator=rng)
    labels, weights = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0.5, 1.0, 1.5])
    offset = torch.tensor([0.5, 0.0, -1.0])
    state = SimpleNamespace(heads=[head], weights=weights, offset=offset, late_from=5.0)
    both = token_logits(head, embedding, offset)
    for step in (4, 5):
        batch = Batch(embedding, functional.one_hot(labels, 3).float(), torch.arange(6), step)
        seen = SimpleNamespace(embedding=embedding)
        found = WeightedTokens(answers="labels").terms(state, Progress(step, 8, 1), seen, seen, batch)
        for term, logits in zip(found, both, strict=True):
            wanted = functional.cross_entropy(logits, labels, weight=weights if step == 5 else None)
            torch.testing.assert_close(term.loss, wanted)

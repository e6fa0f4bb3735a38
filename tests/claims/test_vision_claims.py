"""The claims of model distillation obey the rules, and every arm runs through in its quick form."""

import pytest

from attar import ledger
from attar.claims import vision
from attar.claims.claim import trials
from attar.claims.jobs import Job, run_arm
from attar.claims.vision import VisionClaim

IDS = [
    row.id for row in ledger.rows() if ledger.exists(row.claim) and issubclass(ledger.claim_class(row.id), VisionClaim)
]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(VisionClaim, "quick_source", "fashion-mnist-mini?size=14")


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
    for contrast in (*cls.contrasts(), *cls.secondary):
        for arm in filter(None, (contrast.method, contrast.baseline)):
            assert contrast.metric in found[arm], contrast
    for contrast in (contrast for contrast in cls.contrasts() if contrast.baseline is not None):
        assert costs[contrast.method] <= 1.05 * costs[contrast.baseline], contrast
    closed = {contrast.method for contrast in cls.contrasts() if contrast.form == "exact"}  # forms, computed at once
    assert all(spent > 0 for arm, spent in costs.items() if arm not in closed)


def test_teachers_belong_to_copies_and_labels_to_seeds(tiny_images, open_run, monkeypatch):
    monkeypatch.setattr(vision, "LABELLED", 3)
    claim, data = VisionClaim("verdict", "memory"), tiny_images(each=20)
    one, two, other = (claim.shares(open_run(seed=seed, copy=copy), data) for seed, copy in ((0, 0), (3, 0), (1, 1)))
    assert one.seen.fingerprint == two.seen.fingerprint != other.seen.fingerprint
    assert one.labelled.fingerprint != two.labelled.fingerprint
    assert len(one.labelled) == 9
    known = {bytes(image.numpy()) for image in one.seen.pixels}
    assert {bytes(image.numpy()) for image in one.labelled.pixels} <= known
    assert not known & {bytes(image.numpy()) for image in one.unseen.pixels}
    assert len(one.seen) + len(one.unseen) == len(data)

"""Claims that belong to no single system are found by their ids, obey the rules, and measure what they say."""

import math

import pytest
import torch

from attar import api, ledger
from attar.claims.claim import Claim, check, trials
from attar.claims.constant_memory import TABLE, Segment, cosine, error, logits, saved_bytes
from attar.claims.jobs import Job, run_arm
from attar.errors import RecipeError
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.matching import Synthetic
from attar.nets import ConvNet

IDS = [row.id for row in ledger.claims()]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")


@pytest.mark.parametrize("id", IDS)
def test_the_claim_obeys_the_rules(id):
    cls = ledger.claim_class(id)
    check(cls)
    assert cls.id == id
    assert cls.title == next(row.title for row in ledger.claims() if row.id == id)
    assert all(ledger.find(method) for method in cls.methods)


def test_claims_stand_beside_the_systems_and_are_none():
    systems = {row["id"] for row in ledger.systems()}
    assert systems.isdisjoint(IDS)
    with pytest.raises(RecipeError, match="unknown method 'constant-memory'"):
        ledger.find("constant-memory")
    with pytest.raises(RecipeError, match=r"there are claims of: .*datadam.*constant-memory"):
        ledger.claim_path("random")


def test_the_gradients_are_compared_in_the_quick_form():
    result = api.claim("constant-memory", quick=True)
    measured = result["measured"]["gradients"]
    assert result["verdict"] is None
    assert measured["exact_error"] < 1e-12
    assert measured["exact_growth"] == measured["tesla_growth"] == 1
    assert abs(measured["unroll_growth"] - 8) < 0.4
    assert 0.99 < measured["cosine_10_0.01"] < 1


def segment(tiny_images, soft=False):
    data = tiny_images(classes=3, each=2)
    network = FlatNetwork(ConvNet(depth=1, width=3), data)
    start, target = (network.fresh(torch.Generator().manual_seed(seed)).double() for seed in (1, 2))
    images = data.normalised(torch.tensor([0, 2, 4])).double()
    return Segment(network, start, target, Synthetic(images, torch.eye(3).double() if soft else torch.arange(3)))


def test_teslas_gradient_is_exact_for_a_single_step_alone(tiny_images):
    some = segment(tiny_images)
    assert math.isclose(cosine(some, 1, 0.1), 1, abs_tol=1e-12)
    assert cosine(some, 10, 0.1) < 1 - 1e-4


def test_the_error_is_that_of_images_labels_and_step_size(tiny_images, monkeypatch):
    some = segment(tiny_images, soft=True)
    assert error(some, 4, 0.9) < 1e-12
    match = Segment.match

    def wrong(self, mode, *arguments, **more):
        found = match(self, mode, *arguments, **more)
        return found if mode == "unroll" else type(found)(**{**vars(found), "labels": found.labels * 1.5})

    monkeypatch.setattr(Segment, "match", wrong)
    assert math.isclose(error(some, 4, 0.0), 0.5, rel_tol=1e-9)


def test_saved_bytes_grow_with_unrolling_alone(tiny_images):
    some = segment(tiny_images)
    assert saved_bytes(some, "exact", 40) == saved_bytes(some, "exact", 10)
    assert 3.7 < saved_bytes(some, "unroll", 40) / saved_bytes(some, "unroll", 10) < 4.1


def test_soft_labels_are_highest_at_the_images_own_class(open_run):
    drawn = logits(open_run(), 10)
    assert drawn.dtype == torch.float64
    assert drawn.shape == (10, 10)
    assert drawn.diagonal().mean() - drawn.mean() > 2
    assert len(TABLE) == 4


ARMS = [(id, arm) for id in IDS if id != "constant-memory" for arm in ledger.claim_class(id).grids]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return one home, so that equal stages are made once."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize(("id", "arm"), ARMS)
def test_every_arm_runs_and_is_counted(id, arm, home, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(home))
    cls: type[Claim] = ledger.claim_class(id)
    path = f"{cls.__module__}:{cls.__qualname__}"
    job = Job(claim=path, phase="quick", arm=arm, seed=100, source=cls.quick_source, trial=trials(cls.grids[arm])[0])
    result = run_arm(job, tmp_path / "arm")
    assert result["status"] == "finished"
    assert result["costs"][cls.currency] > 0
    for contrast in (*cls.contrasts(), *cls.secondary):
        if arm in (contrast.method, contrast.baseline):
            assert 0 <= result["metrics"][contrast.metric] <= 1

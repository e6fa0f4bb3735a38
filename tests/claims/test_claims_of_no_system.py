"""Claims that belong to no single system are found by their ids, obey the rules, and measure what they say."""

import math

import pytest
import torch

from attar import api, ledger
from attar.artifacts import DistilledSet
from attar.claims.claim import Claim, trials
from attar.claims.compositions import COMPOSED, RECIPES, CompositionClaim, passes
from attar.claims.constant_memory import TABLE, Segment, cosine, error, logits, saved_bytes
from attar.claims.jobs import Job, run_arm
from attar.claims.meter import COMPUTE_RATIO
from attar.claims.mirrored_bases import BASES, MirroredBasesClaim
from attar.claims.trajectory import spent
from attar.data import Splits
from attar.errors import RecipeError
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.frepo import FeatureRegression
from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.matching import Synthetic
from attar.nets import ConvNet

IDS = [row.id for row in ledger.claims()]


def test_claims_stand_beside_the_systems_and_are_none():
    systems = {row["id"] for row in ledger.systems()}
    assert systems.isdisjoint(IDS)
    with pytest.raises(RecipeError, match="unknown method 'constant-memory'"):
        ledger.find("constant-memory")
    with pytest.raises(RecipeError, match=r"'random' .* has no claim to check; 'attar claim' lists all"):
        ledger.claim_path("random")


def test_the_gradients_are_compared_in_the_quick_form():
    result = api.claim("constant-memory", quick=True)
    measured = result["measured"]["gradients"]
    assert result["verdict"] is None
    assert measured["exact_error"] < 1e-12
    assert measured["exact_growth"] == measured["tesla_growth"] == 1
    assert abs(measured["unroll_growth"] - 4) < 0.2
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


def test_each_base_is_helped_or_not_on_plain_data_too():
    assert {contrast.method for contrast in MirroredBasesClaim.primary} == {f"{b} + fyi" for b in ("dm", "dc", "dsa")}
    plain = [contrast for contrast in MirroredBasesClaim.secondary if contrast.plain]
    assert {contrast.baseline for contrast in plain} == {f"{base}, plain" for base in BASES}
    claim = MirroredBasesClaim("quick")
    made = [claim.base(f"{base} + fyi", 0.1) for base in BASES]
    assert [ledger.id_of(type(method)) for method in made] == list(BASES)
    assert {method.augment for method in made} == {"flip", "dsa-always-flip"}
    assert made[-1].net.norm == "batch"


def test_bases_alone_match_as_many_passes_as_with_mirrored_batches(tiny_images):
    claim = MirroredBasesClaim("verdict")
    for base in BASES:
        ours, theirs = (claim.base(name, 0.1) for name in (f"{base} + fyi", base))
        spent = [
            sum(claim.spent(made, tiny_images(), shown=shown)[kind] for kind in ("forward", "backward"))
            for made, shown in ((ours, 2), (theirs, 1))
        ]
        assert 1.0 <= spent[1] / spent[0] < 1.06
        assert theirs.optimizer == ours.optimizer


def test_compositions_are_no_single_system_and_both_sides_have_as_many_tries():
    claim = CompositionClaim("verdict")
    for ipc in (1, 10):
        composed, singles = (
            [claim.method(name, ipc, 1.0) for name in RECIPES[f"{side}, {ipc}"]] for side in ("composition", "single")
        )
        assert len(singles) == len(composed) == 8
        assert all(one != other for one in composed for other in singles)
        assert len(set(map(repr, composed))) == len(set(map(repr, singles))) == 8
        assert {method.ipc for method in (*singles, *composed)} == {ipc}
        assert {method.student_steps for method in composed} == {10}
    assert set(COMPOSED) == {*RECIPES["composition, 1"], *RECIPES["composition, 10"]}
    assert claim.method("mtt + dsa", 10, 3.0).optimizer.lr == pytest.approx(270.0)
    assert claim.method("frepo", 10, 3.0).optimizer.lr == pytest.approx(0.03)


def test_all_recipes_of_a_size_take_about_as_many_passes(tiny_images):
    claim, data = CompositionClaim("verdict"), tiny_images(classes=10, each=600, size=2)
    for ipc in (1, 10):
        found = []
        for name in (*RECIPES[f"composition, {ipc}"], *RECIPES[f"single, {ipc}"]):
            method = claim.method(name, ipc, 1.0)
            costs = spent(method, data) if isinstance(method, TrajectoryMatching) else passes(method, data)
            found.append(costs["forward"] + costs["backward"])
        assert max(found) < COMPUTE_RATIO * min(found)


def test_a_set_counts_as_many_bytes_as_it_stores_and_learned_labels_stay_within_the_rule(tiny_images, open_run):
    data = tiny_images(classes=10, each=2, size=14)
    splits = Splits(data, data, "")
    spent = []
    for soft in (False, True):
        claim = CompositionClaim("quick")
        made = DistilledSet.from_real(data, 1, torch.Generator().manual_seed(0))
        made.labels = torch.eye(10) if soft else made.labels
        claim.score(open_run(), splits, made, 1, "none")
        spent.append(claim.meter.costs()["stored_bytes"])
    assert spent == [10 * (4 * 196 + 8), 10 * (4 * 196 + 40)]
    assert spent[1] <= 1.05 * spent[0]


def test_passes_of_methods_without_experts_are_counted(tiny_images):
    data = tiny_images(classes=3, each=2)
    assert passes(DistributionMatching(ipc=2, steps=5, real_batch=4), data) == {
        "updates": 5,
        "forward": 5 * (3 * 4 + 6),
        "backward": 5 * 6,
    }
    assert passes(FeatureRegression(ipc=2, steps=5, real_batch=4), data) == {
        "updates": 5,
        "forward": 5 * (4 + 2 * 6),
        "backward": 5 * 2 * 6,
    }


ARMS = [("compositions", arm) for arm in CompositionClaim.grids]
ARMS += [("mirrored-bases", arm) for arm in MirroredBasesClaim.grids if "fyi" in arm and "plain" not in arm]


@pytest.mark.parametrize(("id", "arm"), ARMS)
def test_every_arm_runs_and_is_counted(id, arm, tmp_path):
    cls: type[Claim] = ledger.claim_class(id)
    path = f"{cls.__module__}:{cls.__qualname__}"
    job = Job(claim=path, phase="quick", arm=arm, seed=100, source=cls.quick_source, trial=trials(cls.grids[arm])[0])
    result = run_arm(job, tmp_path / "arm")
    assert result["status"] == "finished"
    assert result["costs"][cls.currency] > 0
    assert 0 <= result["metrics"]["accuracy"] <= 1

"""The claims of masked autoencoders obey the rules, their arms run and spend alike, and share what they should."""

import pytest
import torch

from attar import ledger
from attar.claims.claim import trials
from attar.claims.dmjd import CHANGES
from attar.claims.jobs import Job, run_arm
from attar.claims.masked import MaskedClaim
from attar.nets import ViT
from attar.nets.masked import Decoder, MeanFeatures, fresh_autoencoder
from attar.train.regression import Shape

IDS = ("dmae", "dmjd", "g2sd", "hybrid-distill")
ROWS = {id: ledger.claim_class(id) for id in IDS}
ARMS = [(id, arm) for id, cls in ROWS.items() for arm in cls.grids]
TINY = {"width": 8, "depth": 2, "heads": 2}
SPENT: dict[tuple[str, str], dict] = {}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    for cls in (MaskedClaim, *ROWS.values()):
        for name in ("net", "teacher_net"):
            monkeypatch.setattr(cls, name, ViT(patch=4, **{**TINY, "heads": 4}))
        for name in ("decoder", "teacher_decoder"):
            monkeypatch.setattr(cls, name, Decoder(**TINY))


@pytest.mark.parametrize(("id", "arm"), ARMS)
def test_every_arm_runs_and_has_what_is_contrasted(id, arm, tmp_path):
    cls = ROWS[id]
    path = f"{cls.__module__}:{cls.__qualname__}"
    source = "fashion-mnist-mini?size=14"
    job = Job(claim=path, phase="quick", arm=arm, seed=100, source=source, trial=trials(cls.grids[arm])[0])
    result = run_arm(job, tmp_path / "arm")
    assert result["status"] == "finished"
    SPENT[id, arm] = result["costs"]
    for contrast in (*cls.contrasts(), *cls.secondary):
        if arm in (contrast.method, contrast.baseline):
            assert 0 <= result["metrics"][contrast.metric] <= (1 if contrast.metric != "distance" else 6)


@pytest.mark.parametrize("id", IDS)
def test_the_method_spends_no_more_than_its_baselines(id):
    costs = {arm: SPENT[id, arm] for arm in ROWS[id].grids}
    for contrast in ROWS[id].contrasts():
        assert costs[contrast.method]["updates"] <= 1.05 * costs[contrast.baseline]["updates"]
    if id == "dmjd":
        assert len({cost["passes"] for cost in costs.values()}) == 1


def test_the_arms_of_dmjd_differ_in_what_they_are_named_for():
    claim = ROWS["dmjd"]("verdict")
    assert claim.training({}, batch=claim.batch // 2).batch * 2 == claim.batch
    assert CHANGES["dmjd"] == {}
    assert set(CHANGES["released order"]) == {"order"}


def test_a_seed_draws_images_and_labels_and_a_copy_the_teacher_s(open_run, tiny_images):
    claim, data = MaskedClaim("quick"), tiny_images(each=40, size=8)
    first, again, other = (claim.images(open_run(seed=seed), data).fingerprint for seed in (0, 0, 1))
    assert first == again != other
    made = [claim.teacher(open_run(seed=seed, copy=copy)).fingerprint for seed, copy in ((0, 0), (3, 0), (1, 1))]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("id", [*IDS, "diswot", "scalekd", "tinyclip"])
def test_no_teacher_sees_what_tuning_validates_on(id, open_run):
    source = "fashion-mnist-mini?size=14"
    tuning, verdict = (ledger.claim_class(id)(phase, source) for phase in ("tuning", "verdict"))
    whole = verdict.splits(open_run(seed=0))
    seen, asked = tuning.splits(open_run(seed=100)), tuning.splits(open_run(seed=101))
    assert seen.test.fingerprint == asked.test.fingerprint != whole.test.fingerprint
    assert tuning.taught().fingerprint == verdict.taught().fingerprint == seen.train.fingerprint
    assert len(whole.train) == len(seen.train) + len(seen.test)


def test_probed_features_are_the_mean_over_all_tokens():
    net = ViT(patch=2, **TINY)
    model = fresh_autoencoder(net, Decoder(**TINY), 4, Shape(1, 8, 1), torch.Generator().manual_seed(0))
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    _, embedding = model.encoder.features(images)
    made = MeanFeatures(model.encoder).embed(images)
    assert made.shape == embedding.shape
    tokens = model.encoder.patches(images)
    for block in model.encoder.stages:
        tokens = block(tokens)
    torch.testing.assert_close(made, model.encoder.collapse[0](tokens).mean(1))

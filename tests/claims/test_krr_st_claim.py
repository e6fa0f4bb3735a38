"""The claim of KRR-ST obeys the rules, its arms get the same pairs' bytes, and no class is on both sides."""

import torch

from attar.claims import krr_st
from attar.claims.claim import trials
from attar.claims.jobs import Job, run_arm
from attar.claims.krr_st import SelfSupervisedTransferClaim
from attar.run import Constant
from attar.train.transfer import pretrained


def test_no_class_is_on_both_sides():
    assert not set(krr_st.SOURCE) & set(krr_st.TARGET)


def test_some_classes_are_taken_and_numbered_anew(tiny_images):
    data = tiny_images(classes=4, each=3)
    kept = krr_st.only(data, [3, 1])
    assert kept.classes == ("class 3", "class 1")
    assert kept.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert torch.equal(kept.pixels[:3], data.pixels[3:6])


def test_every_arm_runs_and_rivals_store_as_many_bytes(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(SelfSupervisedTransferClaim, "quick_source", "fashion-mnist-mini?size=7")

    def watched(net, source, like, training, rng):
        assert training.schedule == Constant()
        seen[arm] = source if source is None else (source.images.clone(), source.labels.clone())
        return pretrained(net, source, like, training, rng)

    monkeypatch.setattr(krr_st, "pretrained", watched)
    costs = {}
    for arm, grid in SelfSupervisedTransferClaim.grids.items():
        job = Job(
            claim="attar.claims.krr_st:SelfSupervisedTransferClaim",
            phase="quick",
            arm=arm,
            seed=100,
            source="fashion-mnist-mini?size=7",
            trial=trials(grid)[0],
        )
        result = run_arm(job, tmp_path / arm.replace(" ", "-"))
        assert result["status"] == "finished"
        assert 0 <= result["metrics"]["accuracy"] <= 1
        assert 0 <= result["metrics"]["finetuned accuracy"] <= 1
        costs[arm] = result["costs"]["stored_bytes"]
    pairs = 4 * 20 * (7 * 7 + 64)
    assert {arm: costs[arm] for arm in ("krr-st", "random pairs", "k-means pairs")} == {
        "krr-st": pairs,
        "random pairs": pairs,
        "k-means pairs": pairs,
    }
    assert seen["scratch"] is None
    assert "dm, labelled" not in seen
    for arm in ("krr-st", "random pairs", "k-means pairs"):
        assert seen[arm][0].shape == (20, 1, 7, 7)
        assert seen[arm][1].shape == (20, 64)
    assert not torch.equal(seen["random pairs"][0], seen["k-means pairs"][0])

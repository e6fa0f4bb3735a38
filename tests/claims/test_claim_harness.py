"""The flow of a claim on an instantaneous fake: tuning, power, freezing, resuming, results, replication."""

import json
from typing import ClassVar

import numpy as np
import pytest

from attar import terminal
from attar.claims.claim import Claim, Contrast, Precondition, check
from attar.claims.harness import run_claim
from attar.claims.jobs import outcome
from attar.errors import RecipeError
from attar.results import results


class Toy(Claim):
    id = "toy"
    title = "Toy"
    says = "the new way is better"
    origin = "made up"
    primary = Contrast(method="new", baseline="old", at="10 updates", worst=0.0)
    expects = 0.10
    delta = 0.05
    grids: ClassVar = {"new": {"lr": [0.1, 1.0, 10.0]}, "old": {"lr": [0.1, 1.0, 10.0]}}
    currency = "updates"
    fixed = ("the test set",)
    methods = ()


class Fake:
    """Runs jobs at once: accuracy peaks at lr 1, `new` is better by `effect`, the spread between seeds is shared."""

    def __init__(self, *, effect=0.10, sigma=0.02, cost=None, lost=(), metrics=None, peak=1.0, stop_after=None):
        self.effect, self.sigma, self.peak, self.stop_after = effect, sigma, peak, stop_after
        self.cost, self.lost, self.metrics = cost or {}, set(lost), metrics or {}
        self.jobs = []

    def __call__(self, job, folder):
        if self.stop_after is not None and len(self.jobs) == self.stop_after:
            raise KeyboardInterrupt
        self.jobs.append(job)
        rng = np.random.default_rng([job.seed, job.arm == "new"])
        accuracy = 0.5 - 0.05 * abs(np.log10(job.trial.get("lr", 1.0) / self.peak)) + rng.normal(0, self.sigma)
        accuracy += self.effect * (job.arm == "new")
        costs = {"updates": 10.0, "passes": 100.0, **self.cost.get(job.arm, {})}
        status = "diverged" if (job.phase, job.arm, job.seed) in self.lost else "finished"
        return outcome(job, {"accuracy": accuracy, **self.metrics.get(job.arm, {})}, costs, 1.0, status)

    def done(self, phase):
        return [job for job in self.jobs if job.phase == phase]


@pytest.fixture
def claim(tmp_path, monkeypatch):
    """Check a claim with a fake, results in a fresh folder."""
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))

    def call(fake, cls=Toy, **more):
        said = []
        result = run_claim(cls, execute=fake, folder=tmp_path / "results", workers=1, say=said.append, **more)
        call.said = "\n".join(said)
        return result

    call.folder = tmp_path / "results"
    return call


def variant(**changes):
    return type("Toy", (Toy,), {"__module__": __name__, "__qualname__": "Toy", **changes})


def test_a_real_effect_holds_and_is_written_with_everything_a_stranger_needs(claim):
    result = claim(Fake())
    assert result["verdict"] == "holds"
    assert result["interval"][0] < result["effect"] < result["interval"][1]
    written = json.loads((claim.folder / "toy.json").read_text())
    assert written == result
    assert set(written) >= {
        "verdict", "effect", "interval", "seconds", "reason", "p", "delta", "n", "arms", "currencies", "tuning",
        "power", "versions", "machine", "commit", "hash", "sources", "methods", "frozen", "finished", "fixed",
        "earlier",
    }  # fmt: skip
    new = written["measured"]["new"]
    assert new["accuracy"] == pytest.approx(np.mean(new["values"]["accuracy"]))
    assert new["accuracy_std"] == pytest.approx(np.std(new["values"]["accuracy"], ddof=1))
    old = written["measured"]["old"]
    assert written["arms"]["new"] == new["accuracy"]
    assert written["arms"]["new_std"] == new["accuracy_std"]
    paired = np.subtract(new["values"]["accuracy"], old["values"]["accuracy"])
    assert result["effect"] == pytest.approx(paired.mean())
    assert written["replication"] is False
    assert written["seeds"] == [0, 1, 2, 3, 4]


def test_the_time_of_the_verdict_seeds_is_told_when_tuning_knows_it(claim):
    fake = Fake(effect=0.05)
    claim(fake)
    assert f"the {Toy.seeds} verdict seeds take about 1 min with 1 workers" in claim.said  # two arms of a second each


def test_no_effect_is_reported_as_failing(claim):
    result = claim(Fake(effect=0.0, sigma=0.01))
    assert (result["verdict"], result["reason"]) == ("fails", "absent")


def test_verdict_seeds_are_never_tuned_on_and_tuning_seeds_never_judged(claim):
    fake = Fake()
    claim(fake)
    assert {job.seed for job in fake.done("tuning")} == {100, 101, 102, 103}
    assert {job.seed for job in fake.done("verdict")} == {0, 1, 2, 3, 4}
    assert all(job.trial == {"lr": 1.0} for job in fake.done("verdict"))


def test_every_arm_gets_the_same_number_of_trials(claim):
    fake = Fake()
    claim(fake)
    counts = {arm: sum(job.arm == arm for job in fake.done("tuning")) for arm in ("new", "old")}
    assert counts == {"new": 12, "old": 12}
    with pytest.raises(RecipeError, match="same number of tuning trials"):
        check(variant(grids={"new": {"lr": [1, 2, 3]}, "old": {}}))


def test_a_best_value_on_the_edge_widens_the_grid_until_it_lies_inside_and_the_trials_stay_equal(claim):
    grids = {"new": {"lr": [0.01, 0.1]}, "old": {"lr": [0.1, 1.0]}}
    result = claim(Fake(), variant(grids=grids))
    table = {arm: [row["trial"]["lr"] for row in rows] for arm, rows in result["tuning"]["arms"].items()}
    assert table["new"] == pytest.approx([0.01, 0.1, 1.0, 10.0])
    assert table["old"] == pytest.approx([0.1, 1.0, 10.0, 10**0.5])
    assert result["measured"]["new"]["trial"]["lr"] == pytest.approx(1.0)
    assert claim.said.count("'new' lies on the edge of lr: widened") == 2
    assert "still lies on an edge" not in claim.said
    assert {arm: costs["trials"] for arm, costs in result["currencies"].items()} == {"new": 16, "old": 16}


def test_a_grid_is_widened_three_times_at_most_and_the_rest_is_told(claim):
    grids = {"new": {"lr": [1e-6, 1e-5]}, "old": {"lr": [0.1, 1.0]}}
    table = claim(Fake(), variant(grids=grids))["tuning"]["arms"]
    assert [row["trial"]["lr"] for row in table["new"]] == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert len(table["old"]) == 5
    assert "'new' still lies on an edge" in claim.said


def test_an_arm_that_decides_nothing_asks_for_one_widening_alone(claim):
    edge, inside = {"lr": [1e-6, 1e-5, 1e-4]}, {"lr": [0.1, 1.0, 10.0]}
    beside = Contrast(method="new", baseline="cheap", at="10 updates", worst=0.0)
    changes = {"grids": {"new": inside, "old": inside, "cheap": edge}, "secondary": (beside,)}
    table = claim(Fake(), variant(**changes))["tuning"]["arms"]
    assert [len(rows) for rows in table.values()] == [4, 4, 4]
    assert "'cheap' still lies on an edge" in claim.said


def test_what_looks_best_on_one_seed_and_breaks_on_the_next_is_not_chosen(claim):
    class Rim(Fake):
        def __call__(self, job, folder):
            done = super().__call__(job, folder)
            if job.arm == "new" and job.trial["lr"] == 10.0:
                done["metrics"]["accuracy"] = 0.9 if job.seed == 100 else 0.1
            return done

    result = claim(Rim(), variant(trial_seeds=1))
    assert result["measured"]["new"]["trial"] == {"lr": 1.0}
    assert "'new': on all tuning seeds {'lr': 1.0} is better than {'lr': 10.0}" in claim.said
    rows = {row["trial"]["lr"]: row for row in result["tuning"]["arms"]["new"]}
    assert (len(rows[10.0]["scores"]), len(rows[10.0]["final"]), rows[10.0]["final"][2]) == (1, 4, 0.1)
    assert sum("final" in row for row in rows.values()) == 2


def test_arms_that_decide_nothing_and_benches_have_no_finals(claim):
    grid = {"lr": [0.1, 1.0, 10.0]}
    beside = Contrast(method="new", baseline="cheap", at="10 updates", worst=0.0)
    changes = {"grids": dict.fromkeys(("new", "old", "cheap"), grid), "secondary": (beside,), "trial_seeds": 1}
    table = claim(Fake(), variant(**changes))["tuning"]["arms"]
    assert {arm: sum("final" in row for row in rows) for arm, rows in table.items()} == {"new": 2, "old": 2, "cheap": 0}


def test_an_arm_without_an_edge_gets_its_further_trial_between_two_values(claim):
    grids = {"new": {"lr": [0.01, 0.1, 0.5]}, "old": {"lr": [0.1, 1.0, 10.0]}}
    table = claim(Fake(), variant(grids=grids))["tuning"]["arms"]
    assert len(table["new"]) == len(table["old"]) == 4
    assert table["old"][3]["trial"]["lr"] == pytest.approx(10**0.5)


def test_a_killed_claim_goes_on_and_ends_with_the_same_result(claim, tmp_path):
    whole = claim(Fake())
    (claim.folder / "toy.json").unlink()
    (claim.folder / "toy.freeze.json").unlink()
    for kept in (tmp_path / "home" / "claims").rglob("*.json"):
        kept.unlink()
    total = 0
    for stop_after in (5, 7, 9, 100):
        fake = Fake(stop_after=stop_after)
        if stop_after < 100:
            with pytest.raises(KeyboardInterrupt):
                claim(fake)
        else:
            again = claim(fake)
        total += len(fake.jobs)
    assert total == 24 + 10  # no job ran twice
    assert again["measured"] == whole["measured"]
    assert again["effect"] == whole["effect"]


def test_a_damaged_outcome_is_computed_again(claim, tmp_path):
    claim(Fake())
    kept = next((tmp_path / "home" / "claims").rglob("verdict-new-s3-*.json"))
    kept.write_text(kept.read_text()[:40])
    fake = Fake()
    claim(fake)
    assert [(job.arm, job.seed) for job in fake.jobs] == [("new", 3)]


def test_a_second_start_finds_everything_done_and_leaves_the_file_alone(claim):
    claim(Fake())
    before = (claim.folder / "toy.json").read_bytes()
    fake = Fake()
    claim(fake)
    assert fake.jobs == []
    assert (claim.folder / "toy.json").read_bytes() == before
    assert "already says so" in claim.said


def test_too_few_seeds_for_the_spread_are_refused_before_any_verdict_seed(claim):
    fake = Fake(sigma=0.2)
    with pytest.raises(RecipeError, match=r"write seeds = \d+ into the claim file"):
        claim(fake)
    assert fake.done("verdict") == []
    assert not claim.folder.exists()
    result = claim(Fake(sigma=0.2), variant(underpowered="a pilot"))
    assert result["underpowered"] == "a pilot"
    assert result["power"][0]["power"] < 0.9


def test_no_reason_excuses_a_contrast_that_a_thousand_seeds_would_not_resolve(claim):
    with pytest.raises(RecipeError, match="collapse on some seeds"):
        claim(Fake(sigma=20.0), variant(underpowered="a pilot"))


def test_another_version_of_the_claim_keeps_the_earlier_result_listed(claim):
    first = claim(Fake())
    changed = dict(first, hash="an older file", verdict="inconclusive")
    (claim.folder / "toy.json").write_text(json.dumps(changed))
    second = claim(Fake())
    assert second["verdict"] == "holds"
    assert [(e["hash"], e["verdict"]) for e in second["earlier"]] == [("an older file", "inconclusive")]


def test_a_freeze_of_another_version_is_not_used(claim):
    claim(Fake())
    frozen = claim.folder / "toy.freeze.json"
    record = json.loads(frozen.read_text())
    assert record["chosen"] == {"new": {"lr": 1.0}, "old": {"lr": 1.0}}
    frozen.write_text(json.dumps({**record, "hash": "old", "chosen": {"new": {"lr": 10.0}, "old": {"lr": 10.0}}}))
    assert claim(Fake())["measured"]["new"]["trial"] == {"lr": 1.0}


@pytest.mark.parametrize("more", [{"seeds": 7}, {"first_seed": 1000}, {"data": "digits"}])
def test_other_seeds_or_data_are_a_replication_and_write_nothing(claim, more):
    result = claim(Fake(), **more)
    assert result["replication"] is True
    assert result["verdict"] == "holds"
    assert not claim.folder.exists()


def test_a_replication_uses_the_frozen_choices_and_leaves_the_result_alone(claim):
    claim(Fake())
    before = (claim.folder / "toy.json").read_bytes()
    fake = Fake()
    claim(fake, first_seed=1000)
    assert fake.done("tuning") == []
    assert {job.seed for job in fake.jobs} == {1000, 1001, 1002, 1003, 1004}
    assert (claim.folder / "toy.json").read_bytes() == before


def test_tuning_seeds_cannot_be_verdict_seeds(claim):
    with pytest.raises(RecipeError, match="100-199"):
        claim(Fake(), first_seed=98)
    with pytest.raises(RecipeError, match="at least two"):
        claim(Fake(), seeds=1)


def test_the_embedded_subset_gives_no_verdict(claim):
    result = claim(Fake(), data="fashion-mnist-mini?size=14")
    assert (result["verdict"], result["effect"]) == (None, None)
    assert "setting differs" in claim.said
    assert not claim.folder.exists()


def test_the_quick_form_exercises_every_arm_and_gives_no_verdict(claim):
    fake = Fake()
    result = claim(fake, quick=True)
    assert [(job.arm, job.seed, job.source) for job in fake.jobs] == [
        ("new", 100, "fashion-mnist-mini?size=14"),
        ("old", 100, "fashion-mnist-mini?size=14"),
    ]
    assert (result["quick"], result["verdict"]) == (True, None)
    assert not claim.folder.exists()


def test_a_lost_arm_counts_with_its_worst_value(claim):
    result = claim(Fake(lost=[("verdict", "new", 2)]))
    values = result["measured"]["new"]["values"]["accuracy"]
    assert values[2] is None
    assert result["measured"]["new"]["status"][2] == "diverged"
    old = result["measured"]["old"]["values"]["accuracy"]
    assert result["effect"] == pytest.approx(np.mean([(v or 0.0) - o for v, o in zip(values, old, strict=True)]))
    assert result["n"] == 5


def test_more_of_the_binding_currency_makes_it_inconclusive(claim):
    assert claim(Fake(cost={"new": {"updates": 10.4}}))["verdict"] == "holds"


@pytest.mark.parametrize("cost", [{"updates": 10.6}, {"passes": 130.0}])
def test_unequal_budgets_are_inconclusive_with_the_reason(claim, cost):
    result = claim(Fake(cost={"new": cost}))
    assert result["verdict"] == "inconclusive"
    assert result["reason"].startswith("budgets: ")
    assert result["effect"] == pytest.approx(0.1, abs=0.05)


def test_a_precondition_that_is_not_met_is_inconclusive(claim):
    stated = Precondition(
        says="old beats new", contrast=Contrast(method="old", baseline="new", at="here", worst=0.0), at_least=0.03
    )
    result = claim(Fake(), variant(precondition=stated))
    assert result["verdict"] == "inconclusive"
    assert "old beats new" in result["reason"]
    assert result["precondition"]["measured"] == pytest.approx(-result["effect"])


class NearFloor(Fake):
    """The baseline lies near the floor of its metric in some phases."""

    def __init__(self, *phases):
        super().__init__(metrics={"old": {"accuracy_4": 0.5}, "new": {"accuracy_4": 0.6}})
        self.phases = phases

    def __call__(self, job, folder):
        done = super().__call__(job, folder)
        floor = 0.2 if job.phase in self.phases else 0.02
        return {**done, "metrics": {**done["metrics"], "accuracy_floor": floor}}


@pytest.mark.parametrize("metric", ["accuracy", "accuracy_4"])  # in four steps, which has the floor of the metric
def test_a_baseline_near_the_floor_of_its_metric_is_inconclusive(claim, metric):
    contrast = Contrast(method="new", baseline="old", metric=metric, at="here")
    assert "floor" in claim(NearFloor("verdict"), variant(primary=contrast))["reason"]


def test_a_baseline_near_the_floor_on_tuning_seeds_is_refused_before_any_verdict_seed_is_run(claim):
    fake = NearFloor("tuning")
    with pytest.raises(RecipeError, match=r"'old' lies under 5 times the floor of accuracy; .* more samples"):
        claim(fake)
    assert not fake.done("verdict")
    assert claim(NearFloor("tuning"), first_seed=1000)["verdict"] == "holds"  # a replication may


def test_one_extension_when_the_file_allows_it(claim):
    cls = variant(may_extend=True, underpowered="test", delta=0.05)
    fake = Fake(effect=0.10, sigma=0.09)
    result = claim(fake, cls)
    assert result["extended"] is True
    assert result["n"] == 15
    assert result["confidence"] == 0.975
    assert {job.seed for job in fake.done("verdict")} == set(range(15))


def test_no_extension_where_the_first_look_decides_or_a_budget_stands_in_the_way(claim):
    cls = variant(may_extend=True)
    assert claim(Fake(sigma=0.01), cls)["extended"] is False


def test_more_seeds_do_not_mend_unequal_budgets(claim):
    result = claim(Fake(sigma=0.09, cost={"new": {"updates": 20.0}}), variant(may_extend=True, underpowered="test"))
    assert (result["extended"], result["n"]) == (False, 5)


def test_several_primary_contrasts_and_exact_claims(claim):
    both = (
        Contrast(method="new", baseline="old", at="here"),
        Contrast(method="new", baseline="older", at="here"),
    )
    grid = {"lr": [0.1, 1.0, 10.0]}
    result = claim(Fake(), variant(primary=both, grids={"new": grid, "old": grid, "older": grid}))
    assert result["verdict"] == "holds"
    assert [part["verdict"] for part in result["primary"]] == ["holds", "holds"]


def test_an_exact_claim_is_computed_once(claim):
    cls = variant(
        primary=Contrast(method="new", metric="cosine", form="exact", target=1.0, at="T = 10"),
        delta=1e-3,
        expects=0.0,
        grids={"new": {}},
    )
    fake = Fake(metrics={"new": {"cosine": 0.9995}})
    result = claim(fake, cls)
    assert (result["verdict"], result["n"], result["p"]) == ("holds", 1, None)
    assert len(fake.done("verdict")) == 1


def test_results_are_read_with_staleness_and_holm_marks(claim):
    claim(Fake())
    fresh = results(claim.folder)["toy"]
    assert fresh["stale"] is False
    assert fresh["survives_holm"] is True
    file = claim.folder / "toy.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "sources": {__name__: "0" * 64}}))
    stale = results(claim.folder)["toy"]
    assert stale["stale"] is True
    assert stale["survives_holm"] is None
    assert stale["verdict"] == "holds"


def test_a_doubt_marks_a_result_until_the_claim_is_run_again(claim):
    claim(Fake())
    file = claim.folder / "toy.doubt.md"
    file.write_text("The baseline was not tuned.\n")
    doubted = results(claim.folder)["toy"]
    assert doubted["doubt"] == "The baseline was not tuned."
    assert terminal.verdict(doubted).plain == "holds (doubted)"
    claim(Fake(), variant(seeds=6))
    assert not file.exists()
    assert results(claim.folder)["toy"]["doubt"] == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 4}, "at least 5"),
        ({"delta": 0.04}, "below 0.05"),
        ({"expects": 0.006, "delta": 0.003}, "below 0.005"),
        ({"currency": "update"}, "did you mean 'updates'"),
        ({"tuning_seeds": (0, 1, 2, 3)}, "100-199"),
        ({"tuning_seeds": (100, 101)}, "at least four"),
        ({"primary": Contrast(method="nwe", baseline="old", at="x")}, "did you mean 'new'"),
        ({"primary": Contrast(method="new", at="x")}, "either a baseline or a target"),
        ({"constructed": True}, "plain=True"),
        ({"expects": -0.1}, "above 0"),
        ({"primary": Contrast(method="new", baseline="old", at="x", scale="log-ratio")}, "below 0.1"),
        ({"primary": Contrast(method="new", baseline="old", at="x", resolution=0.06)}, "standard error 0.06"),
    ],
)
def test_a_claim_file_that_breaks_a_rule_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        check(variant(**changes))

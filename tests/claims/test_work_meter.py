"""The work meter: counting, the 5 % rule, and the baseline at equal compute."""

import pytest

from attar.claims.meter import CURRENCIES, Meter, mean_costs, unequal
from attar.errors import RecipeError


def arm(**spent):
    return {**dict.fromkeys(CURRENCIES, 0.0), **spent}


def test_amounts_add_up_and_passes_are_forward_and_backward():
    meter = Meter()
    meter.add(updates=1, forward=30, backward=10)
    meter.add(updates=1, forward=30, stored_bytes=7840)
    costs = meter.costs()
    assert (costs["updates"], costs["forward"], costs["passes"], costs["stored_bytes"]) == (2, 60, 70, 7840)


def test_a_restored_meter_counts_on_from_the_checkpoint():
    meter = Meter()
    meter.add(updates=3)
    saved = meter.state_dict()
    meter.add(updates=5)
    assert saved["updates"] == 3
    meter.load_state_dict(saved)
    meter.add(updates=1)
    assert meter.costs()["updates"] == 4


def test_what_a_given_teacher_s_training_takes_stands_apart():
    meter = Meter()
    meter.add(forward=4)
    with meter.teaching():
        meter.add(updates=3, forward=30, backward=30)
    with meter.teaching():
        meter.add(forward=5, backward=5)
    meter.add(forward=6, teacher_calls=6)
    costs = meter.costs()
    assert (costs["teaching"], costs["passes"], costs["updates"], costs["teacher_calls"]) == (70, 10, 0, 6)


def test_bad_amounts_are_explained():
    with pytest.raises(RecipeError, match="did you mean 'updates'"):
        Meter().add(update=1)
    with pytest.raises(RecipeError, match="at least 0"):
        Meter().add(updates=-1)
    with pytest.raises(RecipeError, match="unknown currency 'seconds'"):
        Meter().add(seconds=1)


def test_costs_are_means_over_seeds():
    assert mean_costs([arm(updates=10), arm(updates=20)])["updates"] == 15


@pytest.mark.parametrize(("spent", "allowed"), [(100, True), (105, True), (105.1, False), (60, True)])
def test_the_method_may_exceed_the_baseline_by_5_percent(spent, allowed):
    arms = {"new": arm(tokens=spent), "old": arm(tokens=100)}
    assert (unequal(arms, [("new", "old")], "tokens") == "") is allowed


def test_every_contrast_is_checked():
    arms = {"new": arm(tokens=100), "old": arm(tokens=100), "cheap": arm(tokens=50)}
    assert "2.00 × the tokens of 'cheap'" in unequal(arms, [("new", "old"), ("new", "cheap")], "tokens")


def test_a_binding_currency_that_nobody_counted_allows_no_verdict():
    assert "never counted" in unequal({"new": arm(), "old": arm()}, [("new", "old")], "tokens")


def test_at_equal_updates_dearer_passes_need_the_baseline_at_equal_compute():
    arms = {
        "new": arm(updates=10, passes=126),
        "old": arm(updates=10, passes=100),
        "longer": arm(updates=13, passes=126),
    }
    assert "equal compute" in unequal(arms, [("new", "old")], "updates")
    assert unequal(arms, [("new", "old"), ("new", "longer")], "updates") == ""
    arms["new"]["passes"] = 125
    assert unequal(arms, [("new", "old")], "updates") == ""


def test_stored_bytes_bind_alone():
    arms = {"new": arm(stored_bytes=10, passes=1e6), "old": arm(stored_bytes=10)}
    assert unequal(arms, [("new", "old")], "stored_bytes") == ""

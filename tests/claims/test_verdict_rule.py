"""The verdict rule: words, intervals, error rates under known and null effects, power."""

import math

import numpy as np
import pytest
from scipy import stats

from attar.claims.power import power, seeds_needed
from attar.claims.verdict import all_of, one_sided_p, paired_differences, t_interval, undecided, verdict
from attar.errors import RecipeError
from attar.results import holm

SIMULATIONS = 20_000


def simulate(effect, sigma, n, seed):
    return np.random.default_rng(seed).normal(effect, sigma, size=(SIMULATIONS, n))


def intervals(samples, confidence):
    """The same interval for all rows at once; `test_vectorised…` ties it to the code under test."""
    n = samples.shape[1]
    half = stats.t.ppf(0.5 + confidence / 2, n - 1) * samples.std(axis=1, ddof=1) / math.sqrt(n)
    return samples.mean(axis=1) - half, samples.mean(axis=1) + half


def monte_carlo(rate):
    return 4 * math.sqrt(rate * (1 - rate) / SIMULATIONS)


def test_interval_of_a_hand_computed_sample():
    # mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776445: 3 ± 2.776445 * 0.7071068
    low, high = t_interval([1, 2, 3, 4, 5])
    assert (low, high) == pytest.approx((1.0367568, 4.9632432), abs=1e-6)
    assert one_sided_p([1, 2, 3, 4, 5]) == pytest.approx(
        stats.ttest_1samp([1, 2, 3, 4, 5], 0, alternative="greater").pvalue
    )
    assert one_sided_p([1, 2, 3, 4, 5], null=3) == pytest.approx(0.5)


def test_vectorised_simulation_uses_the_same_interval():
    samples = simulate(0.3, 1, 5, seed=0)[:50]
    for row, low, high in zip(samples, *intervals(samples, 0.95), strict=True):
        assert t_interval(row) == pytest.approx((low, high))


@pytest.mark.parametrize("n", [5, 9])
def test_interval_covers_the_true_effect_in_95_percent(n):
    low, high = intervals(simulate(0.7, 1.3, n, seed=n), 0.95)
    covered = np.mean((low <= 0.7) & (high >= 0.7))
    assert abs(covered - 0.95) < monte_carlo(0.95)


@pytest.mark.parametrize("n", [5, 13])
def test_null_effects_hold_in_at_most_2_5_percent(n):
    low, _ = intervals(simulate(0, 1, n, seed=10 + n), 0.95)
    assert abs(np.mean(low > 0) - 0.025) < monte_carlo(0.025)
    samples = simulate(0, 1, n, seed=10 + n)[:2000]
    without = np.mean([verdict("superior", row, 0.0).verdict == "holds" for row in samples])
    with_delta = np.mean([verdict("superior", row, 1.0).verdict == "holds" for row in samples])
    assert without < 0.025 + 4 * math.sqrt(0.025 * 0.975 / 2000)
    assert with_delta < without


def test_two_looks_together_hold_in_at_most_2_5_percent_under_the_null():
    samples = simulate(0, 1, 15, seed=3)
    first, _ = intervals(samples[:, :5], 0.975)
    second, _ = intervals(samples, 0.975)
    wrong = np.mean((first > 0) | (second > 0))
    assert wrong < 0.025 + monte_carlo(0.025)
    # the same two looks with ordinary 95 % intervals would not: that is why the rule widens both
    careless = np.mean((intervals(samples[:, :5], 0.95)[0] > 0) | (intervals(samples, 0.95)[0] > 0))
    assert careless > 0.025 + monte_carlo(0.025)


def test_a_planned_second_look_widens_the_interval_and_doubles_p():
    sample = [0.2, 0.5, 0.9, 0.4, 0.3]
    once, twice = verdict("superior", sample, 0.1), verdict("superior", sample, 0.1, looks=2)
    assert twice.interval == pytest.approx(t_interval(sample, 0.975))
    assert twice.interval[0] < once.interval[0]
    assert twice.p == pytest.approx(2 * once.p)
    assert (once.confidence, twice.confidence) == (0.95, 0.975)


def test_an_effect_equal_to_delta_holds_at_most_half_the_time():
    for n in (5, 40):
        samples = simulate(0.5, 0.5, n, seed=n)[:2000]
        rate = np.mean([verdict("superior", row, 0.5).verdict == "holds" for row in samples])
        assert rate < 0.5 + 4 * math.sqrt(0.25 / 2000)
        # and a real effect smaller than delta is hardly ever said to fail as reversed
        assert np.mean([verdict("superior", row, 0.5).reason == "reversed" for row in samples]) < 0.01


@pytest.mark.parametrize(
    ("sample", "delta", "word", "reason"),
    [
        ([1.0, 1.1, 0.9, 1.05, 0.95], 0.5, "holds", ""),
        ([-1.0, -1.1, -0.9, -1.05, -0.95], 0.5, "fails", "reversed"),
        ([0.10, 0.11, 0.09, 0.105, 0.095], 0.5, "fails", "too small"),
        ([0.1, -0.1, 0.05, -0.05, 0.0], 0.5, "fails", "absent"),
        ([3.0, -2.0, 1.0, -1.0, 2.0], 0.5, "inconclusive", "interval reaches both sides"),
        ([0.10, 0.50, 0.30, 0.55, 0.45], 0.5, "inconclusive", "above zero, but not clearly below delta"),
    ],
)
def test_words_of_a_superior_claim(sample, delta, word, reason):
    judged = verdict("superior", sample, delta)
    assert (judged.verdict, judged.reason) == (word, reason)
    assert judged.effect == pytest.approx(np.mean(sample))


def test_words_of_a_not_worse_claim_and_its_p():
    near = [-0.05, 0.02, -0.03, 0.04, -0.01]
    judged = verdict("not-worse", near, 0.2)
    assert judged.verdict == "holds"
    assert judged.p == pytest.approx(stats.ttest_1samp(near, -0.2, alternative="greater").pvalue)
    assert verdict("not-worse", [x - 1 for x in near], 0.2).reason == "worse"
    assert verdict("not-worse", [1.0, -1.0, 0.5, -0.8, 0.1], 0.2).verdict == "inconclusive"


def test_not_worse_at_the_edge_of_the_margin_holds_in_at_most_2_5_percent():
    samples = simulate(-0.2, 1, 5, seed=8)[:3000]
    rate = np.mean([verdict("not-worse", row, 0.2).verdict == "holds" for row in samples])
    assert rate < 0.025 + 4 * math.sqrt(0.025 * 0.975 / 3000)


def test_holds_is_the_same_statement_as_a_small_p():
    for row in simulate(0.8, 1, 6, seed=4)[:300]:
        for looks in (1, 2):
            judged = verdict("superior", row, 0.0, looks=looks)
            assert (judged.verdict == "holds") == (judged.p < 0.025)


def test_exact_claims_are_held_to_their_tolerance_and_need_one_value():
    assert verdict("exact", [1e-4], 1e-3).verdict == "holds"
    off = verdict("exact", [-2e-3], 1e-3)
    assert (off.verdict, off.reason, off.p) == ("fails", "off", None)
    with pytest.raises(RecipeError, match="computed once"):
        verdict("exact", [0.0, 0.0], 1e-3)


def test_several_contrasts_hold_only_if_each_holds():
    good = verdict("superior", [1.0, 1.1, 0.9, 1.05, 0.95], 0.5)
    fair = verdict("superior", [1.0, 1.5, 0.6, 1.05, 0.7], 0.5)
    unsure = verdict("superior", [3.0, -2.0, 1.0, -1.0, 2.0], 0.5)
    bad = verdict("superior", [0.1, -0.1, 0.05, -0.05, 0.0], 0.5)
    assert all_of([good, fair]).verdict == "holds"
    assert all_of([good, fair]).effect == fair.effect
    assert all_of([good, unsure]).verdict == "inconclusive"
    assert all_of([unsure, bad, good]).reason == "absent"
    assert all_of([good, unsure]).p == unsure.p == max(good.p, unsure.p)


def test_joint_contrasts_err_no_more_often_than_one():
    samples = simulate(0, 1, 10, seed=6)
    first, second = intervals(samples[:, :5], 0.95)[0], intervals(samples[:, 5:] + 5, 0.95)[0]
    assert np.mean((first > 0) & (second > 0)) < 0.025 + monte_carlo(0.025)


def test_undecided_keeps_the_numbers():
    judged = verdict("superior", [1.0, 1.1, 0.9], 0.5)
    out = undecided(judged, "precondition not met")
    assert (out.verdict, out.reason, out.effect, out.p) == (
        "inconclusive",
        "precondition not met",
        judged.effect,
        judged.p,
    )


def test_differences_are_positive_as_claimed_on_every_scale():
    assert paired_differences([0.8, 0.7], [0.5, 0.6]) == pytest.approx([0.3, 0.1])
    assert paired_differences([3.0], [5.0], higher_is_better=False) == [2.0]
    assert paired_differences([2.0], [4.0], scale="log-ratio", higher_is_better=False) == pytest.approx([math.log(2)])
    assert paired_differences([4.0], [2.0], scale="log-ratio") == pytest.approx([math.log(2)])
    with pytest.raises(RecipeError, match="above zero"):
        paired_differences([0.0], [2.0], scale="log-ratio")


def test_a_lost_arm_counts_with_the_worst_admissible_value_and_no_seed_is_dropped():
    lost = paired_differences([None, 0.7, math.nan], [0.5, 0.5, 0.5], worst=0.1)
    assert lost == pytest.approx([-0.4, 0.2, -0.4])
    assert paired_differences([0.5], [None], worst=0.1) == pytest.approx([0.4])
    with pytest.raises(RecipeError, match="worst"):
        paired_differences([None], [0.5])
    with pytest.raises(RecipeError, match="both arms"):
        paired_differences([0.5], [0.5, 0.6])


def test_samples_without_spread():
    assert verdict("superior", [0.3] * 5, 0.1).p == 0
    assert verdict("superior", [0.0] * 5, 0.1).reason == "absent"
    assert verdict("superior", [0.0] * 5, 0.1).p == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("superor", [1, 2], 0.1), "did you mean 'superior'"),
        (("superior", [1], 0.1), "two paired seeds"),
        (("superior", [1, math.nan], 0.1), "not finite"),
        (("superior", [1, 2], -0.1), "at least 0"),
    ],
)
def test_bad_input_is_explained(arguments, message):
    with pytest.raises(RecipeError, match=message):
        verdict(*arguments)


@pytest.mark.parametrize(("ratio", "seeds"), [(2, 5), (1.5, 7), (1.25, 9), (1, 13), (0.75, 21), (0.5, 44)])
def test_seeds_for_90_percent_power(ratio, seeds):
    assert seeds_needed(ratio, 1.0) == seeds
    assert seeds_needed(ratio / 100, 0.01) == seeds
    assert power(ratio, 1.0, seeds - 1) < 0.9 <= power(ratio, 1.0, seeds)


def test_power_is_the_rate_at_which_the_interval_excludes_zero():
    for effect, n in ((1.0, 5), (0.5, 13)):
        rate = np.mean(intervals(simulate(effect, 1, n, seed=n + 40), 0.95)[0] > 0)
        assert abs(rate - power(effect, 1, n)) < monte_carlo(0.5)
    assert power(0, 1, 5) == pytest.approx(0.025)
    assert power(1, 1, 5, 0.975) < power(1, 1, 5)
    assert power(1, 1e-9, 5) == power(1, 0, 5) == 1
    assert seeds_needed(0.001, 1) is None


def test_holm_keeps_the_family_error_and_beats_bonferroni():
    assert holm({}) == {}
    assert holm({"a": 0.0249}) == {"a": True}
    assert holm({"a": 0.0125, "b": 0.025}) == {"a": True, "b": True}  # Bonferroni would drop b
    assert holm({"a": 0.0126, "b": 0.0127}) == {"a": False, "b": False}
    rng = np.random.default_rng(0)
    families = rng.uniform(size=(2000, 20))
    wrong = np.mean([any(holm({str(i): p for i, p in enumerate(row)}).values()) for row in families])
    assert wrong < 0.025 + 4 * math.sqrt(0.025 * 0.975 / 2000)

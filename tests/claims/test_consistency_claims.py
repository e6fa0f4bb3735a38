"""The arms of the claims of iCT, LCM and SCott differ in what they are named for, and so do the baselines."""

import dataclasses
import math

import pytest
import torch

from attar.artifacts.drawing import Ode
from attar.claims.claim import trials
from attar.claims.ict import CHANGES, ImprovedConsistencyTrainingClaim, OriginalTraining
from attar.claims.lcm import LatentConsistencyClaim
from attar.claims.samplers import Bed, Unlabelled, calls_of
from attar.claims.sana_sprint import SanaSprintClaim
from attar.claims.scott import StochasticConsistencyClaim
from attar.data import Samples
from attar.methods.sampler.core.distillation import Phase
from attar.run import Cosine
from attar.spec import to_json


def differing(one, other):
    """Return the names of the fields in which two recipes differ."""
    mine, theirs = to_json(one), to_json(other)
    return {name for name in mine if mine[name] != theirs.get(name)}


def test_arms_of_ict_exchange_one_thing():
    claim = ImprovedConsistencyTrainingClaim("verdict")
    made = {arm: claim.recipe(arm, {"lr": 1e-3, "intervals": 150}) for arm in CHANGES}
    assert differing(made["ict"], made["ict, squared error"]) == {"distance", "constant"}
    assert differing(made["ict"], made["ict, even intervals"]) == {"pairs"}
    assert made["ict, even intervals"].pairs.chosen == "uniform"
    assert differing(made["ict"], made["ct"]) == {"distance", "constant", "weight", "pairs", "target"}
    assert made["ct"].train == made["ict"].train
    assert made["ict"].constant == pytest.approx(0.00054 * math.sqrt(2) * 2.3)


def test_the_original_training_has_its_levels_and_its_average(open_run):
    claim = ImprovedConsistencyTrainingClaim("quick")
    bed = Bed(Unlabelled(Samples.of("checkerboard")), None)
    with open_run() as run:
        method = claim.recipe("ct", {"lr": 1e-3, "intervals": 150})
        assert isinstance(method, OriginalTraining)
        lesson, phase = method.begin(run, bed.data, None), Phase("distil", 1000)
        found = {}
        for step in (0, 500, 999):
            moment = method.moment(lesson, phase, step)
            method.pair(lesson, moment)
            found[step] = (method.levels(moment), lesson.learner.decays["target"].decay)
    # √(k/K (151² − 4) + 4): 2, 106.8 and 150.9
    assert [levels for levels, _ in found.values()] == [2, 107, 151]
    assert [decay for _, decay in found.values()] == pytest.approx([0.9 ** (2 / n) for n in (2, 107, 151)])


def test_the_baseline_of_lcm_draws_by_a_solver_at_one_evaluation_a_step(open_run, monkeypatch, tmp_path):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    claim = LatentConsistencyClaim("quick")
    with open_run(seed=100) as run:
        bed = claim.bed(run)
        teacher = claim.teacher(run, bed)
        before = claim.meter.costs()
        made = claim.freed(run, bed, teacher, 100, trials(claim.grids["guided teacher"])[0])
        after = claim.meter.costs()
        assert made.reading.drawing == Ode(solver="dpmpp-2m", steps=4)
        assert made.reading.guided == "embedded"
        assert after["teacher_calls"] - before["teacher_calls"] == 2 * 3 * 16
        found = claim.judge(run, bed, made, (2, 4), guidance=1.75)
        assert claim.meter.costs()["evaluations"] == 6
        assert found.keys() >= {"frechet_2", "frechet_4"}


def test_lcm_and_its_baseline_are_held_to_the_guided_teacher_and_the_baseline_chooses_its_guidance(
    open_run, monkeypatch, tmp_path
):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    claim, seen = LatentConsistencyClaim("quick"), []
    monkeypatch.setattr(claim, "judge", lambda run, bed, made, steps, **given: seen.append(given) or {})
    with open_run(seed=100) as run:
        for arm in ("lcm", "guided teacher"):
            claim.arm(run, arm, 100, trials(claim.grids[arm])[0])
        bed = claim.bed(run)
        guided = claim.references(run, bed, claim.teacher(run, bed), guidance=2.5, solver="heun").ends
    assert [given["guidance"] for given in seen] == [None, 1.75]
    assert all(torch.equal(given["against"].ends, guided) for given in seen)


def test_the_discriminator_of_sana_sprint_weighs_as_much_against_errors_that_are_not_weighed():
    claim = SanaSprintClaim("verdict")
    weighed, plain = (
        claim.recipe("scm + ladd", {"lr": 1e-3, "weight": 0.5, "adaptive": adaptive}) for adaptive in (True, False)
    )
    assert (weighed.adaptive, weighed.adversary.weight) == (True, 0.5)
    assert (plain.adaptive, plain.adversary.weight) == (False, 0.5 / 49)  # 7 × 7 values
    alone = claim.recipe("scm", {"lr": 1e-3, "warmup": 0.1, "adaptive": False})
    assert (alone.adaptive, alone.adversary.weight, alone.consistency) == (False, 0.0, 1.0)
    assert (alone.train.steps, weighed.train.steps) == (720, 300)
    assert alone.train.schedule == weighed.train.schedule == Cosine()


def test_arms_of_scott_have_noise_and_discriminator_as_named():
    claim = StochasticConsistencyClaim("verdict")
    made = {arm: claim.recipe(arm, trials(grid)[0]) for arm, grid in claim.grids.items()}
    assert {arm: (one.eta > 0, one.adversary.weight > 0) for arm, one in made.items()} == {
        "sde + d": (True, True), "sde": (True, False), "ode + d": (False, True), "ode": (False, False),
    }  # fmt: skip
    assert {calls_of(one) for one in made.values()} == {3.0}
    assert made["sde + d"].adversary.weight == 0.01
    assert dataclasses.replace(made["ode + d"].adversary, weight=0.01) == made["sde + d"].adversary

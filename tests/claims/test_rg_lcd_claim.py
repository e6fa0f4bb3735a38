"""RG-LCD's claim: what is read at a reward, who has seen which digits, and that arms go on from one LCM."""

import math

import pytest
import torch

from attar.claims.rg_lcd import BETAS, Onwards, RewardGuidedClaim, at_reward
from attar.data.samples import ImageSamples
from attar.diffusion.specs import DiscreteProcess
from attar.methods.sampler.core.reward import GivenReward
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.lcm import LatentConsistency
from attar.spec import build


def point(reward, frechet, judged=-1.0):
    return {"reward": reward, "frechet": frechet, "judged": judged}


def test_values_are_read_where_the_line_reaches_the_reward():
    line = [point(-1.0, 4.0, -2.0), point(-0.6, 1.0, -3.0), point(-0.9, 9.0, -9.0), point(-0.2, 1.0, -1.0)]
    read = at_reward(line, -0.8)  # first reached between the first two weights, whatever greater ones spoil
    assert read["frechet_at_reward"] == pytest.approx(math.sqrt(4.0 * 1.0))  # halfway, on a logarithmic scale
    assert read["judged_at_reward"] == pytest.approx(-2.5)
    assert read["reward_at_reward"] == pytest.approx(-0.8)


def test_a_line_that_does_not_get_there_has_no_value():
    line = [point(-1.0, 4.0), point(-0.5, 2.0)]
    assert at_reward(line, -2.0)["frechet_at_reward"] == pytest.approx(4.0)  # all of it is beyond
    assert math.isnan(at_reward(line, -0.1)["frechet_at_reward"])


def test_the_reward_and_the_judge_have_seen_other_digits(open_run, tiny_images):
    claim = RewardGuidedClaim("quick")
    with open_run() as run:
        first, second = claim.halves(run, tiny_images())
    seen = [{bytes(image.numpy()) for image in half.pixels} for half in (first, second)]
    assert not seen[0] & seen[1]
    assert len(first) + len(second) == 36


def test_both_ways_get_as_many_weights():
    assert len(BETAS["proxy"]) == len(BETAS["direct"]) == len(BETAS["direct, twice as long"])


def test_students_go_on_from_the_lcm_and_not_from_the_teacher(open_run, tiny_images):
    data = ImageSamples(tiny_images())
    small = {
        "teaching": {"net": {"width": 16, "blocks": 1}, "train": {"steps": 3, "batch": 6}, "prediction": "v"},
        "pairs": {"intervals": 4}, "train.steps": 3, "train.batch": 6, "train.optimizer.lr": 0.01,
        "guidance": {"scale": 1.0, "highest": None, "embedded": False},
    }  # fmt: skip
    with open_run() as run:
        teacher = run.stage("teacher", build(LatentConsistency, small).teaching, data=data)
        first = build(LatentConsistency, small)(run, data=data, teacher=GivenTeacher(teacher))
    still = build(Onwards, {**small, "through": "direct", "train.optimizer.lr": 0.0})
    with open_run() as run:
        reward = GivenReward.of(lambda x, condition: x.flatten(1).mean(1))
        made = still(run, data=data, teacher=GivenTeacher(teacher), reward=reward, start=first)
    assert isinstance(made.reading.process, DiscreteProcess)
    for mine, theirs in zip(made.module.parameters(), first.module.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)

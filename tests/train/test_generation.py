"""Measuring samplers: same noise for all, calls counted, scores that know an exact sampler from a poor one."""

import math
import types

import pytest
import torch

from attar.artifacts.drawing import Multistep, Ode
from attar.data import Samples
from attar.data.samples import ImageSamples
from attar.diffusion import Mixture, ddim, heun
from attar.errors import RecipeError
from attar.metrics.work import WorkMeter
from attar.train import generation
from attar.train.generation import (
    Asked,
    Generation,
    arms_of,
    drawn,
    endpoints,
    measured,
    modes_of,
    picture_score,
    point_score,
    reference_pictures,
    shown,
    straightness,
)
from attar.train.judges import ClassifierJudge, PackagedJudge, judge_of
from exact_samplers import exact_sampler

RING = Samples.of("ring")


@pytest.mark.parametrize(
    ("drawing", "reading", "steps", "calls"),
    [
        (Ode(solver="ddim"), {}, 32, 32),
        (Ode(solver="heun"), {}, 5, 9),  # two a step, one onto clean data
        (Ode(solver="ddim"), {"guidance": 2.0}, 4, 8),  # with and without the condition
        (Multistep(), {}, 3, 3),
        (Multistep(), {"guidance": 3.0}, 1, 2),
    ],
)
def test_network_evaluations_are_counted_and_guidance_twice(drawing, reading, steps, calls):
    sampler = exact_sampler(drawing=drawing, **reading)
    x, row = drawn(sampler, Asked.of(RING, 20, 0), steps)
    assert x.shape == (20, 2)
    assert row["evaluations"] == calls
    assert row["steps"] == steps
    assert row["seconds"] > 0


def test_all_arms_start_from_the_same_noise_and_are_asked_for_the_same():
    asked, again, other = Asked.of(RING, 50, 3), Asked.of(RING, 50, 3), Asked.of(RING, 50, 4)
    assert torch.equal(asked.noise, again.noise)
    assert torch.equal(asked.which, again.which)
    assert not torch.equal(asked.noise, other.noise)
    many, few = exact_sampler(drawing=Ode(steps=32)), exact_sampler(drawing=Ode(steps=33))
    difference = asked.draw(many) - asked.draw(few)
    assert difference.abs().mean() < 0.05 < (asked.draw(many) - other.draw(many)).abs().mean()
    noisy = exact_sampler(drawing=Multistep())
    assert torch.equal(asked.draw(noisy, 4), asked.draw(noisy, 4))  # what is drawn on the way is the same, too


def test_an_exact_sampler_scores_better_with_more_steps_and_hits_its_modes():
    sampler = exact_sampler()
    asked = Asked.of(RING, 600, 0)
    protocol = Generation(steps=(1, 2, 8), teacher_steps=40)
    score = point_score(RING, protocol, asked, endpoints(sampler, asked, 30))
    rows, refused = measured(arms_of(sampler, sampler, protocol, None), asked, score)
    assert refused == {}
    assert [row["name"] for row in rows] == ["1 step", "2 steps", "8 steps", "32 steps", "teacher, 40 steps"]
    for measure in ("sliced_wasserstein", "energy", "endpoint_error"):
        assert rows[0][measure] > rows[2][measure] > rows[4][measure]
    one, last = rows[0], rows[-1]
    # one step of the ODE gives the mean of the class asked for: right, in a point where a ring has a spread of 0.1
    assert one["endpoint_error"] == pytest.approx(0.1, rel=0.1)
    assert last["coverage"] == last["accuracy"] == 1
    assert last["endpoint_error"] < 0.02
    assert last["sliced_wasserstein"] < 0.2


def test_unconditional_collapse_is_seen():
    sampler = exact_sampler()
    asked = Asked.of(RING, 400, 0)
    score = point_score(RING, Generation(), asked, None)
    anything = Asked(asked.noise, torch.full((400,), -1), 0)  # any class: one step is the mean of all, nobody's mode
    assert score(anything.draw(sampler, 1), anything)["coverage"] == 0
    assert score(anything.draw(sampler, 32), anything)["coverage"] == 1
    only = Asked(asked.noise, torch.zeros(400, dtype=torch.long), 0)
    assert score(only.draw(sampler, 32), only)["coverage"] == 1 / 8


def test_points_far_from_a_mode_are_of_none():
    means = RING.mixture.means.float()
    assert modes_of(RING, means).tolist() == list(range(8))
    assert modes_of(RING, means * 1.2).tolist() == list(range(8))  # 0.4 off, four deviations
    assert modes_of(RING, means * 1.3).tolist() == [-1] * 8
    assert modes_of(Samples.of("checkerboard"), torch.tensor([[-1.5, -1.5], [3.0, 3.0]])).tolist() == [0, -1]


def test_steps_name_the_arms_once_and_start_at_one():
    sampler = exact_sampler(drawing=Ode(steps=2))
    assert [arm.steps for arm in arms_of(sampler, None, Generation(), None)] == [1, 2, 4]
    with pytest.raises(RecipeError, match="at least one step"):
        arms_of(sampler, None, Generation(steps=(0, 1)), None)


def test_ways_to_one_gaussian_bend_and_to_one_point_are_straight():
    asked = Asked.of(Samples.of(Mixture.gaussian(torch.zeros(2), 1.0)), 50, 0)
    point = exact_sampler(Mixture.gaussian(torch.ones(2), 1e-6))
    assert straightness(point, asked, 16) == pytest.approx(0, abs=1e-6)
    bent = straightness(exact_sampler(Mixture.gaussian(torch.zeros(2), 1.0)), asked, 200)
    # x_t = s_t ε with s² = (1 − t)² + t², s_0 = s_1 = 1: ∫ s'² dt |ε|², and s'² = (2t − 1)² / s² integrates to 2 − π/2
    assert bent == pytest.approx((2 - math.pi / 2) * float(asked.noise.square().sum(1).mean()), rel=0.02)
    assert straightness(exact_sampler(drawing=Multistep()), Asked.of(RING, 4, 0), 8) is None


def test_calls_of_a_teacher_are_counted_guidance_twice():
    teacher, asked = exact_sampler(), Asked.of(RING, 10, 0)
    meter = WorkMeter()
    meter.watch("teacher", teacher.module, teacher=True)
    told, t = asked.which, torch.full((10,), 0.5)
    with meter:
        heun(teacher.view(3.0), asked.noise, t, t - 0.25, told)
        assert meter.amounts()["teacher_calls"] == 40
        ddim(teacher.view(), asked.noise, t, t - 0.25, told)
        assert meter.amounts()["teacher_calls"] == 50
    assert meter.nfe("teacher", 10) == 5


def test_samples_to_look_at_share_their_noise():
    sampler = exact_sampler()
    arms = arms_of(sampler, sampler, Generation(steps=(16,), teacher_steps=16), None)
    made = shown(arms, torch.tensor([3, 5]), 4, (2,), 0)
    assert {key: tuple(x.shape) for key, x in made.items()} == {f"arm.{k}": (2, 4, 2) for k in range(3)}
    assert torch.equal(made["arm.0"], made["arm.2"])  # student and teacher are one here
    assert modes_of(RING, made["arm.1"][1]).tolist() == [5] * 4


# --------------------------------------------------------------------------- pictures


@pytest.fixture
def digits(tiny_images):
    return ImageSamples(tiny_images(classes=3, size=8, each=30, source="tiny"))


def test_a_classifier_of_the_data_judges_pictures(open_run, digits):
    with open_run() as run:
        judge = judge_of(run, digits)
    assert isinstance(judge, ClassifierJudge)
    assert judge.accuracy(digits.images) > 0.97
    real, _ = reference_pictures(digits, None)
    which = digits.which
    assert judge.right(real, which).double().mean() > 0.97
    assert judge.right(real, (which + 1) % 3).double().mean() < 0.03
    score = picture_score(judge, real)
    asked = Asked(real, which, 0)
    static = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    same, noise = score(real, asked), score(static, asked)
    assert same["frechet"] == pytest.approx(0, abs=1e-6)
    assert same["coverage"] == same["recall"] == same["high_frequencies"] == 1
    assert noise["frechet"] > 1
    assert noise["kernel"] > same["kernel"]
    assert noise["accuracy"] < 0.6 < same["accuracy"]
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    assert score(blurred, asked)["high_frequencies"] < 0.7


def test_pairs_are_those_of_some_pictures_whatever_their_order(monkeypatch):
    monkeypatch.setattr(generation, "PAIRED_PICTURES", 40)
    judge = types.SimpleNamespace(features=lambda x: x.flatten(1))
    real = torch.randn(400, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    real[200:] += 3  # as a folder is read, kind by kind
    made = torch.cat([real[:20], real[-20:], torch.full((100, 1, 2, 2), 99.0)])
    found = picture_score(judge, real)(made, Asked(made, None, 0))
    assert found["precision"] > 0.8  # the others are not looked at
    assert found["coverage"] > 0.5  # of both kinds
    assert found["frechet"] > 1000


def test_captions_are_judged_by_the_nearest_picture(tiny_images):
    images = tiny_images(classes=2, channels=3, size=16, each=3)
    captioned = ImageSamples(
        images, captions=["a", "b", "c"], which=torch.tensor([0, 0, 1, 1, 2, 2]), vectors=torch.eye(3)
    )
    judge = judge_of(None, captioned)
    assert isinstance(judge, PackagedJudge)
    real, words = reference_pictures(captioned, images)
    assert words == "training pictures"
    assert judge.right(real, captioned.which).all()
    assert judge.right(real + 0.01, captioned.which).all()
    assert not judge.right(real, (captioned.which + 1) % 3).any()
    assert torch.equal(judge.known_pictures, real)
    assert torch.equal(judge.features(judge.known_pictures), judge.features(real))

"""rCM: consistency, and score distillation of roll-outs whose times do not rise, new ones for the fake score."""

import itertools
import math

import pytest
import torch

from attar.artifacts.drawing import Multistep
from attar.data.samples import Samples
from attar.diffusion import Flow, Mixture, TrigFlow, transfer_time
from attar.losses.score import distribution_gap
from attar.methods.sampler.core.rollout import redrawn
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.diffusion import denoising_loss
from attar.methods.sampler.rcm import RegularizedConsistency as RCM
from attar.methods.sampler.scm import ContinuousConsistency as SCM
from attar.metrics.work import WorkMeter
from attar.spec import build

TINY = {"train.steps": 6, "train.batch": 6, "guidance.scale": 1.0, "warmup": 2, "train.optimizer.lr": 1e-3}


def begun(run, data, given, **fields):
    method = build(RCM, {**TINY, **fields})
    lesson = method.begin(run, data, given)
    lesson.state = method.build(lesson)
    return method, lesson


def moment_of(method, lesson, step):
    return method.moment(lesson, method.phases()[0], step)


def test_score_distillation_begins_when_the_tangent_has_warmed_up(open_run, pictures, taught):
    with open_run() as run:
        method, lesson = begun(run, pictures, taught())
        for step in (0, 1):
            moment = moment_of(method, lesson, step)
            assert [list(terms) for terms in method.terms(lesson, moment)] == [["consistency"]]
            method.after(lesson, moment)
            assert lesson.state.fake.learner.steps == 0
        moment = moment_of(method, lesson, 2)
        assert [list(terms) for terms in method.terms(lesson, moment)] == [["consistency"], ["score"]]  # apart
        method.after(lesson, moment)
        assert lesson.state.fake.learner.steps == 4
        assert all(p.grad is None for p in lesson.student.module.parameters())  # the fake score's steps are its own


def test_consistency_weighs_a_hundred_and_is_that_of_scm(open_run, pictures, taught):
    shared = {"times": {"kind": "log-normal", "mean": -0.8, "std": 1.6}, "times_for": 1.0, "adaptive": False,
              "derivative": "semi-continuous", "width": 1e-4}  # fmt: skip
    losses = []
    with open_run() as run:
        method, lesson = begun(run, pictures, taught())
        losses.append(float(next(iter(method.terms(lesson, moment_of(method, lesson, 1))))["consistency"].detach()))
    with open_run() as run:
        plain = build(SCM, {**TINY, **shared})
        lesson = plain.begin(run, pictures, taught())
        lesson.state = plain.build(lesson)
        (terms,) = plain.terms(lesson, moment_of(plain, lesson, 1))
        losses.append(float(terms["consistency"].detach()))
    assert losses[0] == pytest.approx(100 * losses[1], rel=1e-3)


def test_the_gradient_of_a_made_sample_is_twice_the_gap_over_its_numbers(open_run, pictures, taught, monkeypatch):
    """Of ‖x0 − sg(x0 − gap)‖² as a mean over numbers and samples, λ = 3."""
    with open_run() as run:
        method, lesson = begun(run, pictures, taught(), warmup=0, score=3.0, consistency=0.0)
        with torch.no_grad():
            for parameter in lesson.state.fake.sampler.module.parameters():
                parameter.mul_(1.3)
        moment = moment_of(method, lesson, 1)
        made = method.rolled(lesson, moment, "roll-out", 1).detach().requires_grad_(True)
        monkeypatch.setattr(RCM, "rolled", lambda *_: made)
        ((name, term),) = next(iter(method.terms(lesson, moment))).items()
        (gradient,) = torch.autograd.grad(term, made)
        t = method.fake.times.draw(6, lesson.process, run.rng("score time", 1))
        x_t = lesson.process.diffuse(made.detach(), torch.randn(made.shape, generator=run.rng("score noise", 1)), t)
        views = lesson.teacher.view, lesson.state.fake.view
        real, fake = (view.x0(x_t.float(), t, moment.batch.condition) for view in views)
        assert name == "score"
        expected = 3.0 * 2 * distribution_gap(made, real, fake) / (64 * 6)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_roll_outs_take_one_to_four_steps_by_turns_and_only_the_last_has_a_gradient(open_run, pictures, taught):
    with open_run() as run:
        method, lesson = begun(run, pictures, taught())
        moment, meter = moment_of(method, lesson, 0), WorkMeter()
        meter.watch("student", lesson.student.module)
        asked = []
        with meter:
            for number in range(5):
                before = meter.passes["student"].forward
                method.rolled(lesson, moment, "roll-out", number)
                asked.append((meter.passes["student"].forward - before) // 6)
        assert asked == [1, 2, 3, 4, 1]
        first = method.rolled(lesson, moment, "roll-out", 3)
        assert first.requires_grad
        assert torch.equal(first, method.rolled(lesson, moment, "roll-out", 3))  # as a run that goes on draws it
        assert not torch.equal(first, method.rolled(lesson, moment, "fake roll-out", 3))


def test_times_of_a_roll_out_do_not_rise_and_it_begins_at_the_noisiest():
    seen = []

    class Watched:
        process = Flow()

        def x0(self, x, t, condition):
            seen.append((t, torch.is_grad_enabled()))
            return torch.full_like(x, 2.0)

    times = [torch.full((3,), value, dtype=torch.float64) for value in (1.0, 0.5, 0.0)]
    noise = [torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    states = []

    class Kept(Watched):
        def x0(self, x, t, condition):
            states.append(x)
            return super().x0(x, t, condition)

    redrawn(Kept(), times, noise, None)
    assert [grad for _, grad in seen] == [False, False, True]
    assert torch.allclose(states[0], noise[0])  # σ = 1 of pure noise
    assert torch.allclose(states[1], 0.5 * 2.0 + 0.5 * noise[1])  # noised anew
    assert torch.allclose(states[2], torch.full((3, 2), 2.0))


def test_stops_are_drawn_for_each_sample_and_capped_by_the_one_before(open_run, pictures, taught, monkeypatch):
    found = []
    monkeypatch.setattr("attar.methods.sampler.rcm.redrawn", lambda view, times, *_: found.append(times))
    with open_run() as run:
        method, lesson = begun(run, pictures, taught(), **{"train.batch": 200})
        method.rolled(lesson, moment_of(method, lesson, 0), "roll-out", 3)
    (times,) = found
    assert len(times) == 4
    assert times[0].unique().tolist() == pytest.approx([80 / (80 + 1 / pictures.sigma_data)], rel=1e-6)
    assert all(bool((later <= earlier).all()) for earlier, later in itertools.pairwise(times))
    assert times[1].unique().numel() > 100
    assert 0.68 < times[1].mean() < 0.80  # u → 5u / (1 + 4u): uniform times would have 0.5


def test_every_update_of_the_fake_score_sees_fresh_samples(open_run, pictures, taught, monkeypatch):
    with open_run() as run:
        method, lesson = begun(run, pictures, taught(), warmup=0)
        shown = []

        def watched(view, batch, t):
            shown.append(batch.x0)
            return denoising_loss(view, batch, t)

        monkeypatch.setattr("attar.methods.sampler.core.score.denoising_loss", watched)
        method.after(lesson, moment_of(method, lesson, 0))
        assert len(shown) == 4
        assert all(not torch.equal(a, b) for a, b in itertools.pairwise(shown))
        assert not any(x0.requires_grad for x0 in shown)


def test_it_is_drawn_at_the_papers_angles(open_run, pictures, taught):
    with open_run() as run:
        _, lesson = begun(run, pictures, taught())
        drawing, trig = lesson.student.reading.drawing, TrigFlow(sigma_data=pictures.sigma_data)
    angles = torch.tensor([math.atan(80), 1.5, 1.4, 1.0], dtype=torch.float64)
    times = transfer_time(trig, Flow(), angles).tolist()
    assert isinstance(drawing, Multistep)
    assert (drawing.steps, drawing.highest, *drawing.times) == pytest.approx((4, *times))


def test_score_distillation_alone_brings_a_student_to_the_data(open_run):
    """One Gaussian: a fresh student's one-step samples go where the exact teacher's are."""
    data = Samples.of(Mixture.gaussian(torch.tensor([1.0, -0.5]), 0.3))
    fields = {"net": {"kind": "mlp", "width": 32, "depth": 2}, "train.steps": 120, "train.batch": 64, "warmup": 0,
              "consistency": 0.0, "longest": 1, "train.average": 0.95, "train.optimizer.lr": 2e-3,
              "fake.optimizer": {"kind": "adam", "lr": 1e-2}}  # fmt: skip
    with open_run() as run:
        made = build(RCM, {**TINY, **fields})(run, data=data, teacher=GivenTeacher("exact"))
    assert made(400, steps=1).mean(0).tolist() == pytest.approx([1.0, -0.5], abs=0.25)


def test_the_papers_setting_runs(open_run, pictures, taught):
    method = build(RCM, {"train.steps": 2, "train.batch": 6, "warmup": 1}, preset="paper")
    assert (method.guidance.scale, method.consistency, method.score, method.longest, method.fake.updates) == (
        5.0, 100.0, 1.0, 4, 4,
    )  # fmt: skip
    with open_run() as run:
        made = method(run, data=pictures, teacher=taught())
    assert torch.isfinite(made(3, steps=4)).all()

"""SCott: neighbours 24 levels apart, three steps of an SDE that keep marginals, random targets, and a discriminator."""

import dataclasses

import pytest
import torch

from attar.data.samples import PointSamples
from attar.diffusion.mixture import Mixture
from attar.diffusion.specs import DiscreteProcess
from attar.errors import RecipeError
from attar.methods.sampler.core.adversarial import Adversary
from attar.methods.sampler.core.distillation import Phase
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.times import Pair
from attar.methods.sampler.lcm import LatentConsistency
from attar.methods.sampler.scott import StochasticConsistency as SCott
from attar.metrics.work import WorkMeter
from attar.nets.denoiser_specs import PointMLP
from attar.spec import build

VP = DiscreteProcess(betas="linear")
TINY = {"train.steps": 3, "train.batch": 6, "adversary.hidden": 8}
PHASE = Phase("distil", 3)


def test_neighbours_are_24_of_1000_levels_apart():
    process = VP.build()
    pair = SCott().pairs.draw(3000, process, torch.Generator().manual_seed(0))
    t, s = (process.label(u).round().long() for u in (pair.t, pair.s))
    assert torch.equal(s, (t - 24).clamp_min(0))
    assert 990 < t.max() <= 999


def test_no_pair_is_one_time_twice():
    pairs, process = SCott().pairs, VP.build()
    assert pairs.grid(process, 1000)[:2].tolist() == [0.001, 0.001]
    pair = pairs.draw(20_000, process, torch.Generator().manual_seed(0))
    assert bool((pair.s < pair.t).all())


def begun(run, data, given, **fields):
    method = build(SCott, {**TINY, **fields})
    lesson = method.begin(run, data, given)
    lesson.state = method.build(lesson)
    return method, lesson


def test_the_sde_is_guided_takes_three_steps_and_is_drawn_anew_each_time(open_run, pictures, taught):
    with open_run() as run:
        method, lesson = begun(run, pictures, taught(process=VP))
        meter = WorkMeter()
        meter.watch("teacher", lesson.teacher.sampler.module)
        moments = [method.moment(lesson, PHASE, step) for step in (0, 0, 1)]
        t = torch.full((6,), 0.5, dtype=torch.float64)
        pair = Pair(t, t - 0.024, torch.zeros_like(t))
        with meter:
            ends = [method.below(lesson, moment, pair, moments[0].batch.x0) for moment in moments]
        assert meter.passes["teacher"].forward == 3 * 3 * 2 * 6
        assert torch.equal(ends[0], ends[1])  # a step that is done again after a kill draws what it drew
        assert not torch.allclose(ends[0], ends[2], atol=1e-3)
        still = dataclasses.replace(method, eta=0.0)
        plain = [still.below(lesson, moments[0], pair, moments[0].batch.x0) for _ in range(2)]
        assert torch.equal(plain[0], plain[1])
        assert not torch.allclose(plain[0], ends[0], atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_whatever_noise_is_drawn_the_state_below_is_distributed_as_noised_data(open_run, eta):
    """One Gaussian and its exact denoiser: mean α m and variance α² s² + σ² at s, whatever η."""
    data = PointSamples(Mixture.gaussian(torch.tensor([1.0, -0.5]), 0.5))
    fields = {"guidance": {"scale": 1.0, "highest": None, "embedded": False}, "adversary.weight": 0.0, "eta": eta,
              "train.batch": 60_000, "teaching": {"net": PointMLP(width=8, depth=1), "process": VP}}  # fmt: skip
    with open_run() as run:
        method, lesson = begun(run, data, GivenTeacher("exact"), **fields)
        moment = method.moment(lesson, PHASE, 0)
        t = torch.full((60_000,), 0.6, dtype=torch.float64)
        pair = Pair(t, t - 0.024, torch.zeros_like(t))
        x_t = method.state(lesson, moment, pair)
        x_s = method.below(lesson, moment, pair, x_t)
        process = VP.build()
        alpha, sigma = (
            value(torch.tensor(0.576, dtype=torch.float64)).item() for value in (process.alpha, process.sigma)
        )
        spread = (0.25 * alpha**2 + sigma**2) ** 0.5
        torch.testing.assert_close(x_s.mean(0), alpha * torch.tensor([1.0, -0.5]), atol=0.015, rtol=0)
        torch.testing.assert_close(x_s.std(0), torch.tensor([spread, spread]), atol=0.015, rtol=0)
        # how much of the noise that x_t holds is still there falls with η
        kept = (x_s[:, 0] * moment.batch.noise[:, 0]).mean().item()
        assert (kept > 0.97 * sigma) == (eta < 0.5)


def test_the_loss_is_squared_and_the_discriminator_has_four_tenths(open_run, pictures, taught):
    given = taught(process=VP)
    with open_run() as run:
        method, lesson = begun(run, pictures, given)
        moment = method.moment(lesson, PHASE, 0)
        pair = method.pair(lesson, moment)
        x_t = method.state(lesson, moment, pair)
        x_s = method.below(lesson, moment, pair, x_t)
        (terms,) = method.terms(lesson, moment)
        guess = method.led(lesson.view, x_t, pair, pair.t, moment.condition)
        goal = method.goal(lesson.target, x_s, pair, moment.condition)
        assert terms["consistency"].item() == pytest.approx((guess - goal).square().mean().item(), rel=1e-4)
        assert terms["adversarial"].item() == pytest.approx(0.4 * lesson.state.term(moment, guess).item(), rel=1e-4)


def test_the_student_is_pushed_to_what_the_discriminator_takes_for_real(open_run, pictures, taught):
    with open_run() as run:
        method, lesson = begun(run, pictures, taught(process=VP), **{"adversary.optimizer.lr": 0.0})
        moment = method.moment(lesson, PHASE, 0)
        pair = method.pair(lesson, moment)
        x_t = method.state(lesson, moment, pair)
        guess = method.led(lesson.view, x_t, pair, pair.t, moment.condition)
        term = lesson.state.term(moment, guess)
        gradients = torch.autograd.grad(term, list(lesson.student.module.parameters()), allow_unused=True)
        length = sum(g.square().sum() for g in gradients if g is not None).sqrt()
        assert length > 0
        with torch.no_grad():
            for parameter, gradient in zip(lesson.student.module.parameters(), gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(0.02 * gradient / length)
        after = lesson.state.term(moment, method.led(lesson.view, x_t, pair, pair.t, moment.condition))
        assert after < term


def test_the_discriminator_learns_beside_the_student_and_the_teacher_stays(open_run, pictures, taught):
    given = taught(process=VP)
    teacher = given.given.fingerprint
    with open_run() as run:
        method, lesson = begun(run, pictures, given, **{"adversary.optimizer.lr": 0.01})
        before = [p.clone() for p in lesson.state.learner.module.parameters()]
        moment = method.moment(lesson, PHASE, 0)
        list(method.terms(lesson, moment))
        method.after(lesson, moment)
        assert any(not torch.equal(a, b) for a, b in zip(before, lesson.state.learner.module.parameters(), strict=True))
        assert all(p.grad is None for p in lesson.student.module.parameters())  # the hinge is the discriminator's alone
    assert given.given.fingerprint == teacher


def test_without_noise_and_discriminator_it_is_lcm_with_three_steps(open_run, pictures, taught):
    shared = {"train.optimizer.lr": 1e-3, "train.steps": 2, "train.batch": 6, "pairs": {"intervals": 40}, "substeps": 3}
    fields = {**shared, "eta": 0.0, "adversary.weight": 0.0, "distance": "huber-element", "pairs.skip": 1}
    made = []
    for cls, told in ((SCott, fields), (LatentConsistency, shared)):
        with open_run(seed=4) as run:
            made.append(build(cls, told)(run, data=pictures, teacher=taught(process=VP)))
    assert made[0].fingerprint == made[1].fingerprint


def test_a_teacher_in_closed_form_has_no_features_to_tell_by(open_run):
    data = PointSamples(Mixture.ring())
    with open_run() as run, pytest.raises(RecipeError, match=r"put the adversarial weight .* to 0"):
        begun(run, data, GivenTeacher("exact"), teaching={"net": PointMLP(width=8, depth=1), "process": VP})
    assert SCott().adversary == Adversary(
        weight=0.4, optimizer={"kind": "adam", "lr": 2e-5, "beta1": 0.0, "beta2": 0.99}
    )

"""DMD: two scores, stored pairs, updates of the fake score, a discriminator on its blocks, and several steps."""

import pytest
import torch

from attar.data.samples import Samples
from attar.diffusion import Mixture
from attar.errors import RecipeError
from attar.losses.score import distribution_gap
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.dmd import DistributionMatching as DMD
from attar.spec import build

POINTS = Samples.of(Mixture.gaussian(torch.tensor([1.0, -0.5]), 0.3))
PAIRS = {"count": 40, "steps": 2}
TINY = {"train": {"steps": 3, "batch": 6}, "coupling": PAIRS, "regression": 0.0}


@pytest.fixture
def begun(pictures, taught):
    """Return a function that starts a method: its lesson, and its first moment."""

    def start(run, **changes):
        method = build(DMD, {**TINY, **changes})
        lesson = method.begin(run, pictures, taught())
        lesson.state = method.build(lesson)
        with torch.no_grad():
            for parameter in lesson.student.module.parameters():
                parameter.add_(0.02)
        return method, lesson, method.moment(lesson, method.phases()[0], 0)

    return start


def weights(module):
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def test_the_gradient_in_a_sample_is_the_gap_of_both_scores(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, **{"guidance.scale": 3.0})
        (terms,) = method.terms(lesson, moment)
        made, noise, which = lesson.state.made, moment.batch.noise, moment.batch.condition
        one = torch.ones(6)
        torch.testing.assert_close(made, (noise - lesson.student.module(noise, one, which)).detach())
        t = method.score.times.draw(6, lesson.process, run.rng("score time", 0))
        fresh = torch.randn(6, 1, 8, 8, generator=run.rng("score noise", 0))
        rows = t.float().reshape(-1, 1, 1, 1)
        x_t = (1 - rows) * made + rows * fresh
        teacher, fake = lesson.teacher.sampler.module, lesson.state.fake.sampler.module
        asked, null = (teacher(x_t, t.float(), c) for c in (which, torch.full_like(which, 3)))
        real = x_t - rows * (null + 3 * (asked - null))
        gap = distribution_gap(made, real, x_t - rows * fake(x_t, t.float(), which))
        found = torch.autograd.grad(terms["matching"], list(lesson.student.module.parameters()), retain_graph=True)
        again = noise - lesson.student.module(noise, one, which)
        want = torch.autograd.grad((gap * again).sum() / (6 * 64), list(lesson.student.module.parameters()))
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-6)


def test_pairs_hold_the_student_to_the_teachers_ends(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, regression=0.25)
        _, terms = method.terms(lesson, moment)
        pairs = lesson.state.pairs
        mine = torch.randint(len(pairs), (6,), generator=run.rng("pairs", 0))
        made = pairs.noise[mine] - lesson.student.module(pairs.noise[mine], torch.ones(6), pairs.which[mine])
        want = 0.25 * (made - pairs.ends[mine]).square().mean()
        assert terms["regression"].item() == pytest.approx(want.item(), rel=1e-4)
    with pytest.raises(RecipeError, match="regression=0"):
        build(DMD, {"steps": 4})


def test_the_fake_score_takes_its_updates_and_nobody_else_moves(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, **{"score.updates": 5})
        list(method.terms(lesson, moment))
        fake, student, teacher = lesson.state.fake, lesson.student.module, lesson.teacher.sampler.module
        before = [weights(module) for module in (fake.sampler.module, student, teacher)]
        method.after(lesson, moment)
        after = [weights(module) for module in (fake.sampler.module, student, teacher)]
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, True]
        assert fake.learner.steps == 5


@pytest.mark.parametrize("trunk", ["fake", "teacher"])
def test_the_fake_scores_blocks_learn_to_tell_and_the_teachers_do_not(open_run, begun, trunk):
    with open_run() as run:
        method, lesson, moment = begun(
            run, trunk=trunk, **{"adversary.weight": 0.1, "adversary.hidden": 4, "score.updates": 2}
        )
        (terms,) = method.terms(lesson, moment)
        assert set(terms) == {"matching", "adversarial"}
        own, teacher = lesson.state, lesson.teacher.sampler.module
        parts = (own.fake.sampler.module, teacher, own.discriminator.learner.module)
        before = [weights(module) for module in parts]
        method.after(lesson, moment)
        kept = [torch.equal(a, weights(module)) for a, module in zip(before, parts, strict=True)]
        assert kept == [False, True, False]
        assert all(parameter.grad is None for parameter in lesson.student.module.parameters())
        assert (own.fake.learner.steps, own.discriminator.learner.steps) == (2, 2 if trunk == "fake" else 1)


def test_the_discriminators_loss_is_a_part_of_the_fake_scores_updates(open_run, begun):
    """Of their sum alone, by λ_c: without it the fake score learns as if there were none."""
    fields = {"adversary.weight": 0.1, "adversary.hidden": 4, "score.optimizer": {"kind": "sgd", "lr": 1.0}}
    moved = []
    for telling, more in ((1e-9, fields), (1.0, fields), (1.0, {"score.optimizer": fields["score.optimizer"]})):
        with open_run() as run:
            method, lesson, moment = begun(run, telling=telling, **more)
            list(method.terms(lesson, moment))
            own = lesson.state
            before = weights(own.fake.sampler.module)
            if own.discriminator is not None and telling == 1.0:
                x_t, t = own.discriminator.noised(moment, own.made, None, 0)
                loss = own.discriminator.telling(moment, x_t, t, None, 0)
                pull = torch.autograd.grad(loss, list(own.fake.sampler.module.parameters()), allow_unused=True)
                pulls = zip(pull, own.fake.sampler.module.parameters(), strict=True)
                wanted = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pulls])
            method.after(lesson, moment)
            moved.append(weights(own.fake.sampler.module) - before)
    weak, strong, without = moved
    torch.testing.assert_close(weak, without)
    torch.testing.assert_close(strong, without - wanted, rtol=1e-3, atol=1e-6)


def test_each_update_of_the_fake_score_sees_other_samples(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, **{"score.updates": 3, "steps": 2})
        list(method.terms(lesson, moment))
        first, second, third = (method.anew(lesson, moment, number) for number in range(3))
        assert torch.equal(first, lesson.state.made)
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)


def test_several_steps_are_simulated_as_they_are_drawn(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, steps=4)
        lengths = []
        for step in range(40):
            moment = method.moment(lesson, method.phases()[0], step)
            noises = list(method.noises(moment))
            lengths.append(len(noises))
            if len(noises) == 3:
                found = method.samples(lesson, moment, noises, moment.condition)
                x = noises[0]
                for t, fresh in ((1.0, noises[1]), (0.75, noises[2])):
                    clean = x - t * lesson.student.module(x, torch.full((6,), t), moment.condition)
                    x = (1 - (t - 0.25)) * clean + (t - 0.25) * fresh
                want = x.detach() - 0.5 * lesson.student.module(x.detach(), torch.full((6,), 0.5), moment.condition)
                torch.testing.assert_close(found, want)
                (a, b) = (torch.autograd.grad(y.sum(), list(lesson.student.module.parameters())) for y in (found, want))
                for one, other in zip(a, b, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert set(lengths) == {1, 2, 3, 4}


def test_a_far_off_student_is_moved_onto_the_data(open_run):
    fields = {
        "teaching": {"net": {"kind": "mlp", "width": 16, "depth": 1}, "process": "flow"}, "regression": 0.0,
        "train": {"steps": 150, "batch": 32, "optimizer": {"kind": "adam", "lr": 5e-3}},
        "score": {"updates": 1, "optimizer": {"kind": "adam", "lr": 5e-3}},
    }  # fmt: skip
    with open_run() as run:
        made = build(DMD, fields)(run, data=POINTS, teacher=GivenTeacher("exact"))
    x = made(1000)
    assert float((x.mean(0) - torch.tensor([1.0, -0.5])).norm()) < 0.45  # 1.1 at first


def test_presets_are_the_two_papers(open_run, pictures, taught):
    first, second = build(DMD), build(DMD, preset="dmd2")
    assert (first.regression, first.score.updates, first.adversary.weight) == (0.25, 1, 0.0)
    assert (second.regression, second.score.updates, second.adversary.weight) == (0.0, 5, 3e-3)
    assert second.score.optimizer == first.score.optimizer
    assert second.adversary.optimizer.lr == second.score.optimizer.lr
    assert second.telling * 0.5 == 0.01  # of a mean of two halves: of their sum
    sizes = {"train": {"steps": 2, "batch": 4}, "adversary.hidden": 4, "steps": 4}
    with open_run() as run:
        assert build(DMD, sizes, preset="dmd2")(run, data=pictures, teacher=taught())(3).isfinite().all()

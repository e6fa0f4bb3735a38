"""What methods put beside their own terms: a discriminator on the teacher's features, and a fake score."""

import dataclasses

import pytest
import torch

from attar.data.samples import Samples
from attar.diffusion import Mixture
from attar.errors import RecipeError
from attar.methods.sampler.core.adversarial import Adversary, Features, blocks_of
from attar.methods.sampler.core.score import ScoreDistillation
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.times import Times
from attar.nets.denoiser_specs import DiT, PointMLP, UNet
from attar.run import Adam
from lessons import lesson_of, moment_of


@pytest.mark.parametrize("net", [None, DiT(width=8, depth=4, heads=2, patch=4), UNet(width=8, multipliers=(1, 2))])
def test_features_of_every_kind_of_network_carry_gradients_to_the_sample(taught, pictures, net):
    teacher = taught(net).given
    teacher.module.requires_grad_(False)
    features = Features(teacher, (0.25, 0.5, 1.0))
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    found = features(x, torch.full((2,), 0.5), torch.tensor([0, 1]))
    assert len(found) == len(features.blocks) >= 2
    assert all(one.dim() == 3 and len(one) == 2 for one in found)
    (gradient,) = torch.autograd.grad(sum(one.square().sum() for one in found), x)
    assert gradient.abs().sum() > 0
    assert not any(layer._forward_hooks for layer in teacher.module.modules())


def test_depths_are_shares_of_the_blocks(taught):
    teacher = taught(DiT(width=8, depth=4, heads=2, patch=4)).given
    blocks = blocks_of(teacher.module)
    assert len(blocks) == 4
    assert Features(teacher, (0.25, 1.0)).blocks == [blocks[0], blocks[3]]
    with pytest.raises(RecipeError, match="no features"):
        blocks_of(torch.nn.Linear(1, 1))


def test_the_discriminator_learns_to_tell_and_the_student_term_moves_samples_to_the_real_side(
    open_run, taught, pictures
):
    with open_run() as run:
        bare, lesson = lesson_of(run, pictures, taught())
        spec = Adversary(weight=1.0, times=Times(lowest=0.01, highest=0.05), optimizer=Adam(lr=0.02))
        discriminator = spec.build(lesson)
        frozen = [p.clone() for p in lesson.teacher.sampler.module.parameters()]
        for step in run.loop("learn", 60):
            moment = moment_of(bare, lesson, step)
            discriminator.term(moment, torch.zeros_like(moment.batch.x0) - 0.9)
            discriminator.step(moment)
        moment = moment_of(bare, lesson, 99)
        made = (torch.zeros_like(moment.batch.x0) - 0.9).requires_grad_(True)
        low = discriminator.term(moment, made)
        high = discriminator.term(moment, moment.batch.x0)
        assert high.item() < low.item() - 0.5  # real samples fool it, made ones do not
        (gradient,) = torch.autograd.grad(low, made)
        assert discriminator.term(moment, made.detach() - 0.5 * gradient / gradient.norm()) < low
        assert all(torch.equal(a, b) for a, b in zip(frozen, lesson.teacher.sampler.module.parameters(), strict=True))


def test_made_samples_of_a_noise_level_are_noised_on_and_never_back(open_run, taught, pictures):
    with open_run() as run:
        bare, lesson = lesson_of(run, pictures, taught())
        discriminator = Adversary(weight=1.0, times=Times(lowest=0.01, highest=0.02)).build(lesson)
        moment = moment_of(bare, lesson)
        x_t = 3 * moment.batch.noise
        discriminator.term(moment, x_t, torch.full((6,), 0.8, dtype=torch.float64))
        shown, t = discriminator._fake
        assert torch.equal(t, torch.full_like(t, 0.8))
        assert torch.allclose(shown, x_t)  # nothing is added where it is noisy enough


def test_conditions_of_others_count_as_made_where_asked(open_run, taught, pictures):
    losses = []
    for mismatched in (False, True):
        with open_run() as run:
            bare, lesson = lesson_of(run, pictures, taught())
            discriminator = Adversary(weight=1.0, mismatched=mismatched, smooth=2.0).build(lesson)
            moment = moment_of(bare, lesson)
            discriminator.term(moment, moment.batch.x0)
            discriminator.step(moment)
            losses.append([p.clone() for p in discriminator.learner.parameters])
    assert not all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


def test_a_neighbour_with_the_same_condition_is_no_mismatch(open_run, taught, pictures):
    weights = []
    for mismatched in (False, True):
        with open_run() as run:
            bare, lesson = lesson_of(run, pictures, taught())
            discriminator = Adversary(weight=1.0, mismatched=mismatched).build(lesson)
            moment = moment_of(bare, lesson)
            same = dataclasses.replace(moment.batch, condition=torch.ones_like(moment.batch.condition))
            moment = dataclasses.replace(moment, batch=same)
            discriminator.term(moment, moment.batch.x0)
            discriminator.step(moment)
            weights.append([p.clone() for p in discriminator.learner.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_closed_form_has_no_features(open_run):
    data = Samples.of(Mixture.ring())
    with open_run() as run:
        _, lesson = lesson_of(run, data, GivenTeacher("exact"), net=PointMLP(width=8, depth=1))
        with pytest.raises(RecipeError, match="adversarial weight"):
            Adversary(weight=1.0).build(lesson)
        assert ScoreDistillation().build(lesson).sampler.shape == (2,)


def test_the_fake_score_learns_the_made_samples_and_the_gap_leads_them_to_the_data(open_run):
    """Made samples sit in one place; a fake score that has seen them points from there to the data, one unseen not."""
    mixture = Mixture.gaussian(torch.tensor([1.0, 0.0]), 0.2)
    data = Samples.of(mixture)
    with open_run() as run:
        bare, lesson = lesson_of(run, data, GivenTeacher("exact"), net=PointMLP(width=32, depth=2))
        spec = ScoreDistillation(updates=2, optimizer=Adam(lr=0.01))
        fake = spec.build(lesson)
        assert fake.learner.module is not lesson.student.module
        place = torch.tensor([-1.0, 0.0])
        for step in run.loop("learn", 80):
            moment = moment_of(bare, lesson, step)
            fake.step(moment, place + 0.2 * moment.batch.noise)
        assert fake.learner.steps == 160
        moment = moment_of(bare, lesson, 99)
        made = (place + 0.2 * moment.batch.noise).requires_grad_(True)
        (gradient,) = torch.autograd.grad(fake.term(moment, made, lesson.teacher.view), made)
        direction = -gradient.mean(0)
        assert direction[0] > 0
        assert direction[0] > 3 * direction[1].abs()


def test_the_fake_score_begins_as_the_teacher_and_then_there_is_no_gap(open_run, taught, pictures):
    with open_run() as run:
        bare, lesson = lesson_of(run, pictures, taught())
        fake = ScoreDistillation().build(lesson)
        moment = moment_of(bare, lesson)
        made = moment.batch.x0.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(fake.term(moment, made, lesson.teacher.view), made)
        assert gradient.abs().max() < 1e-6
        fake.step(moment, moment.batch.x0)
        (gradient,) = torch.autograd.grad(fake.term(moment, made, lesson.teacher.view), made)
        assert gradient.abs().max() > 1e-6

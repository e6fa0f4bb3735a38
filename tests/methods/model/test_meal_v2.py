"""MEAL V2: what the student and the discriminator minimise, whose gradient goes where, and where training starts."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from attar.data.soft_labels import Views
from attar.errors import RecipeError
from attar.methods.model.meal_v2 import EnsembleDistillation, discriminator, mean_logits, told_apart
from attar.methods.model.student import TrainStudent
from attar.nets import ConvNet
from attar.run import SGD, Adam, Cosine
from attar.train.objective import Batch, Progress, StudentTraining
from attar.train.taps import Told, read
from attar.train.teacher import Ensemble, Teacher, Teaching

NET = ConvNet(depth=1, width=4)
TRAIN = StudentTraining(steps=5, batch=6, augment="none", optimizer=SGD(lr=0.1), schedule=Cosine())
METHOD = EnsembleDistillation(student=NET, train=TRAIN, crops=None, pretraining=Teaching(epochs=2, batch=6))


def weights(student):
    return torch.cat([tensor.flatten() for tensor in student.tensors().values()])


@pytest.fixture
def teachers(data, teacher_of):
    return [teacher_of(data, seed=seed) for seed in (1, 2)]


def test_the_target_is_the_mean_of_probabilities(data, teachers):
    images, labels = data.batch(torch.arange(6))
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    told = Told(Ensemble([one.module for one in teachers])(images).detach())
    plain = dataclasses.replace(METHOD, adversary=0)
    (term,) = plain.terms(None, Progress(0, 1, 1), Told(logits), told, Batch(images, labels, torch.arange(6), 0))
    mean = sum(one.module(images).softmax(1) for one in teachers).detach() / 2
    torch.testing.assert_close(term.loss, -(mean * logits.log_softmax(1)).sum(1).mean())


def test_the_discriminator_is_shown_the_mean_of_logits(data, teachers):
    images, _ = data.batch(torch.arange(6))
    module = Ensemble([one.module for one in teachers])
    mine, theirs = METHOD.taps(teachers[0].module, module)
    told = Told(*read(module, images, theirs))
    torch.testing.assert_close(mean_logits(told), sum(one.module(images) for one in teachers) / 2)
    assert mine == ()
    assert METHOD.taps(teachers[0].module, teachers[1].module) == ((), ())
    assert dataclasses.replace(METHOD, sees="probabilities").taps(module, module) == ((), ())


def test_student_and_discriminator_both_make_them_easier_to_tell_apart():
    torch.manual_seed(0)
    judge = discriminator(12, final_relu=False)
    student, teachers = torch.randn(8, 12, requires_grad=True), torch.randn(8, 12, requires_grad=True)
    before = told_apart(judge, student, teachers)
    before.backward()
    assert teachers.grad is None
    with torch.no_grad():
        moved = told_apart(judge, student - 0.5 * student.grad, teachers)
        assert moved < before  # the student helps the discriminator; it does not fool it
        for parameter in judge.parameters():
            parameter.sub_(0.1 * parameter.grad)
        assert told_apart(judge, student, teachers) < before


def test_the_loss_of_telling_apart_is_a_mean_over_rows_and_outputs():
    judge = nn.Identity()
    student, teachers = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 3.0]])
    parts = [math.log1p(math.exp(-x)) for x in (2.0, 1.0, -0.5, 3.0)]  # wanted: 1, 0 and 0, 1
    assert told_apart(judge, student, teachers).item() == pytest.approx(sum(parts) / 4, rel=1e-6)


def test_the_last_relu_can_be_left_out_since_it_can_die():
    torch.manual_seed(1)
    dead = discriminator(10)
    dead[4].bias.data.fill_(-100.0)
    loss = told_apart(dead, torch.randn(4, 10), torch.randn(4, 10))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in dead.parameters())
    assert isinstance(discriminator(10)[-1], nn.ReLU)
    assert isinstance(discriminator(10, final_relu=False)[-1], nn.Linear)
    assert [layer.out_features for layer in discriminator(1000) if isinstance(layer, nn.Linear)] == [125, 15, 2]


def test_the_discriminator_learns_at_its_own_rate_and_changes_the_student(data, teachers, open_run):
    with open_run() as run:
        module = METHOD(run, data=data, teacher=Teacher.of(teachers))
        learner = run._state["discriminator"]
    assert learner.steps == 5
    assert learner.optimizer.param_groups[0]["lr"] == 1e-4
    with open_run() as run:
        without = dataclasses.replace(METHOD, adversary=0)(run, data=data, teacher=Teacher.of(teachers))
        assert "discriminator" not in run._state
    assert not torch.equal(weights(module), weights(without))


def test_training_goes_on_from_a_given_student(data, teachers, teacher_of, open_run):
    start = teacher_of(data, seed=9, net=NET)
    before = weights(start).clone()
    still = dataclasses.replace(METHOD, train=dataclasses.replace(TRAIN, optimizer=SGD(lr=0.0)))
    with open_run() as run:
        made = still(run, data=data, teacher=Teacher.of(teachers), start=start)
    assert torch.equal(weights(made), before)
    assert made.module is not start.module
    with open_run() as run:
        moved = METHOD(run, data=data, teacher=Teacher.of(teachers), start=start)
    assert not torch.equal(weights(moved), before)
    assert torch.equal(weights(start), before)
    other = dataclasses.replace(data, classes=("a", "b", "c"))
    with open_run() as run, pytest.raises(RecipeError, match="start from"):
        METHOD(run, data=other, teacher=Teacher.of(teachers), start=start)


def test_crops_are_shown_to_student_and_teachers_alike_and_differ_from_step_to_step(data):
    method = EnsembleDistillation(crops=Views(mix="cutmix"))
    state = nn.Module()
    state.data, state.key = data, 3
    images, labels = data.batch(torch.arange(4))
    shown = [method.views(state, Batch(images, labels, torch.arange(4), step), None).images for step in (0, 0, 1)]
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])
    assert not torch.equal(shown[0], images)
    with pytest.raises(RecipeError, match="mixed"):
        dataclasses.replace(method, hard=1.0).build(None)


def test_what_crops_would_undo_is_refused(data, teachers, open_run):
    both = dataclasses.replace(METHOD, crops=Views(), train=dataclasses.replace(TRAIN, augment="crop-and-flip"))
    part = dataclasses.replace(both, train=TRAIN)
    for method in (both, TrainStudent(student=NET, train=both.train, objective=(part,))):
        with open_run() as run, pytest.raises(RecipeError, match="augment=none"):
            method(run, data=data, teacher=Teacher.of(teachers))
    with open_run() as run:
        dataclasses.replace(both, crops=None)(run, data=data, teacher=Teacher.of(teachers))


def test_the_defaults_are_the_papers():
    method = EnsembleDistillation()
    assert method.train.optimizer == SGD(lr=0.01, momentum=0.9, weight_decay=0.0)
    assert (method.train.epochs, method.train.batch, method.hard) == (180, 512, 0.0)
    factor = method.train.schedule.factor
    assert [factor(step, 180) for step in (99, 100)] == [1.0, 0.1]
    assert method.adversary_optimizer.lr == 1e-4
    assert isinstance(dataclasses.replace(method, adversary_optimizer=Adam()).adversary_optimizer, Adam)

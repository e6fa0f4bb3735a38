"""Random teachers: who is frozen, where the student starts, what it imitates, and what reads its features."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import RecipeError
from attar.methods.model.random_teachers import Projection, ProjectionHead, RandomTeacher
from attar.metrics.landscape import between, error_barrier
from attar.nets import ConvNet
from attar.run import SGD, AdamW, Constant
from attar.train.probe import estimate_statistics, linear_probe, neighbour_accuracy
from attar.train.training import Order, Training, predict
from attar.train.transfer import probed

NET = ConvNet(depth=1, width=4, norm="batch")
PROJECTION = Projection(hidden=(12,), bottleneck=6, outputs=20)
TRAIN = Training(steps=4, batch=9, optimizer=SGD(lr=0.5), schedule=Constant())
METHOD = RandomTeacher(net=NET, projection=PROJECTION, train=TRAIN)


def trained(method, data, open_run):
    with open_run(threads=1) as run:
        return method(run, data=data), method.teacher(run, data), method.fresh(run, data, "student")


def test_the_head_gives_cosines_with_prototypes_of_length_one():
    torch.manual_seed(0)
    head = ProjectionHead(PROJECTION, 8)
    x = torch.randn(5, 8)
    inner = nn.functional.gelu(x @ head.mlp[0].weight.T + head.mlp[0].bias) @ head.mlp[2].weight.T + head.mlp[2].bias
    expected = inner / inner.norm(dim=1, keepdim=True) @ (head.last.weight / head.last.weight.norm(dim=1)[:, None]).T
    torch.testing.assert_close(head(x), expected)
    assert float(head(x).detach().abs().max()) <= 1
    assert head.last.bias is None
    assert 0.01 < float(head.mlp[0].weight.detach().std()) < 0.03
    plain = ProjectionHead(Projection(hidden=(), bottleneck=None, outputs=7), 8)
    torch.testing.assert_close(plain(x), plain.last(x))


def test_a_step_imitates_the_teacher_in_evaluation_mode(data, open_run):
    method = dataclasses.replace(METHOD, train=dataclasses.replace(TRAIN, steps=2))
    student, teacher, fresh = trained(method, data, open_run)
    with open_run(threads=1) as run:
        order = Order(data, method.train, run.rng)
    teacher.eval()
    fresh.train()
    parameters = [p for name, p in fresh.named_parameters() if "network.head" not in name]
    for step in range(2):
        images, _ = order.batch(step)
        told = teacher(images).detach().softmax(1)
        loss = -(told * fresh(images).log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data -= 0.5 * gradient
    for name, value in fresh.network.state_dict().items():
        if not name.startswith("head."):
            torch.testing.assert_close(student.module.state_dict()[name], value)


def test_the_student_starts_a_share_of_the_way_from_its_teacher(data, open_run):
    with open_run(threads=1) as run:
        teacher, other = METHOD.teacher(run, data), METHOD.fresh(run, data, "student")
    t, o = teacher.network.stages[0][0].weight.clone(), other.network.stages[0][0].weight
    for alpha, start, stay in ((0.25, "between", 0.75), (0.25, "around", 1.0), (1.0, "between", 0.0)):
        student = dataclasses.replace(METHOD, alpha=alpha, start=start)
        moved = METHOD.fresh
        with open_run(threads=1) as run:
            at = moved(run, data, "teacher")
        student.move_away(at, other)
        expected = (stay * t + alpha * o) / (stay**2 + alpha**2) ** 0.5
        torch.testing.assert_close(at.network.stages[0][0].weight, expected)
        assert at.network.stages[0][1].weight.tolist() == [1.0] * 4  # no draw made the scale of a norm
    assert not torch.allclose(t, o)


def test_at_the_teacher_itself_nothing_is_left_to_learn_without_batch_norm(data, open_run):
    slow = dataclasses.replace(TRAIN, optimizer=SGD(lr=1e-3))
    method = dataclasses.replace(METHOD, net=ConvNet(depth=1, width=4, norm="none"), alpha=0.0, train=slow)
    student, teacher, _ = trained(method, data, open_run)
    at = dict(teacher.network.state_dict())
    for name, value in student.tensors().items():
        if not name.startswith("head."):
            torch.testing.assert_close(value, at[name], atol=1e-4, rtol=0)


def test_a_squared_loss_temperatures_and_a_centre_change_what_is_wanted(data, open_run):
    outputs, wanted = torch.randn(3, 20), torch.randn(3, 20)
    squared = dataclasses.replace(METHOD, loss="squared").distance(outputs, wanted)
    torch.testing.assert_close(squared, (outputs - wanted).square().mean())
    sharp = dataclasses.replace(METHOD, teacher_temperature=0.04, student_temperature=0.1).distance(outputs, wanted)
    p, q = (wanted / 0.04).log_softmax(1), (outputs / 0.1).log_softmax(1)
    torch.testing.assert_close(sharp, (p.exp() * (p - q)).sum(1).mean())
    found = [trained(dataclasses.replace(METHOD, centre=c), data, open_run)[0] for c in (None, 0.5)]
    first, second = (made.module.stages[0][0].weight for made in found)
    assert not torch.allclose(first, second, atol=1e-7)


def test_noise_and_images_teach_other_things_and_labels_teach_nothing_but_the_probe(data, open_run):
    weight = trained(METHOD, data, open_run)[0].module.stages[0][0].weight
    noise = trained(dataclasses.replace(METHOD, inputs="noise"), data, open_run)[0].module.stages[0][0].weight
    mixed = dataclasses.replace(data, labels=data.labels.roll(1))
    other = trained(METHOD, mixed, open_run)[0].module
    assert not torch.allclose(weight, noise)
    assert torch.equal(weight, other.stages[0][0].weight)


def test_the_probe_becomes_the_head(data, open_run):
    student = trained(METHOD, data, open_run)[0]
    told = predict(student.module, data).argmax(1)
    assert float((told == data.labels).double().mean()) == pytest.approx(probed(student.module, data, data))
    assert float((told == data.labels).double().mean()) > 0.9
    few = data.subset((data.labels != 1).nonzero().flatten())  # two classes of three
    head = linear_probe(student.module, few)
    logits = student.module.embed(data.normalised()) @ head.weight.T + head.bias
    assert set(logits.argmax(1).tolist()) == {0, 2}


def test_neighbours_vote(data):
    network = nets.fresh(NET, data, torch.Generator().manual_seed(0)).eval()
    assert neighbour_accuracy(network, data, data, k=1) == 1.0
    assert neighbour_accuracy(network, data, data, k=len(data)) == pytest.approx(1 / 3)  # a tie: the first class


def test_statistics_are_estimated_in_one_pass(data):
    network = nets.fresh(NET, data, torch.Generator().manual_seed(0)).eval()
    norm = network.stages[0][1]
    norm.running_mean.fill_(7)
    estimate_statistics(network, data, batch=9)
    maps = [network.stages[0][0](data.normalised(torch.arange(9 * k, 9 * k + 9))) for k in range(2)]
    expected = torch.stack([x.mean((0, 2, 3)) for x in maps]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    assert not network.training


def test_the_barrier_is_the_highest_rise_above_the_line_between_both_ends():
    module = nn.Linear(1, 1, bias=False)
    start, end = ({"weight": torch.tensor([[value]])} for value in (0.0, 1.0))
    shape = {0.0: 0.2, 0.5: 0.9, 1.0: 0.4}

    def error(at):
        return shape[round(float(at.weight.detach()), 1)]

    assert error_barrier(module, start, end, error, shares=[0.5]) == pytest.approx(0.9 - 0.3)
    shape[0.5] = 0.1
    assert error_barrier(module, start, end, error, shares=[0.5]) == 0.0
    assert between({"n": torch.tensor(3)}, {"n": torch.tensor(9)}, 0.5)["n"] == 3
    with pytest.raises(RecipeError, match="same parameters"):
        between(start, {"other": end["weight"]}, 0.5)


def test_the_papers_defaults():
    made = RandomTeacher()
    assert made.projection == Projection(hidden=(2048, 2048), bottleneck=256, outputs=65_536)
    assert (made.train.batch, made.train.total(2560)) == (256, 1000)
    assert made.train.optimizer == AdamW(lr=1e-3, weight_decay=0.0)
    assert (made.teacher_temperature, made.student_temperature, made.centre) == (1.0, 1.0, None)

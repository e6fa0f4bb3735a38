"""ND: means of classes from one pass, norm and direction, the map between sizes, and KD's growing weight beside it."""

import dataclasses

import pytest
import torch
from torch import nn

from attar import losses, nets
from attar.methods.model.kd import KnowledgeDistillation
from attar.methods.model.nd import NormAndDirection, class_means
from attar.methods.model.student import TrainStudent
from attar.nets import ConvNet
from attar.run import SGD, Cosine
from attar.spec import build
from attar.train.objective import Batch, Progress, StudentTraining
from attar.train.taps import Told

NET = ConvNet(depth=1, width=4)
TRAIN = StudentTraining(steps=5, batch=6, augment="none", optimizer=SGD(lr=0.05), schedule=Cosine())


def weights(student):
    return torch.cat([tensor.flatten() for tensor in student.tensors().values()])


def test_means_are_of_the_embeddings_of_each_class_in_evaluation_mode(data, teacher):
    teacher.module.train()
    found = class_means(teacher.module, data)
    assert not teacher.module.training
    embeddings = teacher.module.embed(data.normalised(torch.arange(len(data)))).detach()
    for label in range(3):
        torch.testing.assert_close(found[label], embeddings[data.labels == label].mean(0))


def terms(method, features, told, logits, progress):
    state = nn.Module()
    state.means, state.fit = torch.eye(2), nn.Identity()
    labels = torch.tensor([0, 1])
    student = Told(logits, {"embedding": features})
    teacher = Told(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), {"embedding": told})
    batch = Batch(torch.zeros(2), labels, torch.arange(2), progress.step)
    return {term.name: term for term in method.weighed(state, progress, student, teacher, batch)}


def test_short_features_gain_from_length_and_long_ones_from_direction_alone():
    told = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    logits, progress = torch.zeros(2, 2), Progress(0, 10, 10)

    def value(scale):
        features = scale * torch.tensor([[0.8, 0.6], [0.6, 0.8]])
        return terms(NormAndDirection(), features, told, logits, progress)["nd"].loss.item()

    assert value(1.0) == pytest.approx(1 - 0.8 / 2)
    assert value(2.0) == pytest.approx(1 - 0.8)
    assert value(5.0) == pytest.approx(1 - 0.8)


def test_kd_has_a_weight_of_its_own_that_grows_and_nd_does_not():
    method = NormAndDirection(weight=3.0, kd=2.0, warmup_share=1.0)
    features, logits = torch.eye(2), torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    first, later = (terms(method, features, features, logits, Progress(step, 40, 10)) for step in (0, 39))
    assert (first["nd"].weight, later["nd"].weight) == (3.0, 3.0)
    assert first["kd"].weight == pytest.approx(0.5)
    assert later["kd"].weight == pytest.approx(2.0)
    told = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(later["kd"].loss, losses.kl_divergence(logits, told, 4.0))
    assert set(terms(NormAndDirection(), features, features, logits, Progress(0, 1, 1))) == {"nd"}


def test_without_weight_kd_remains_kd(data, teacher, open_run):
    fields = {"student": NET, "train": TRAIN, "hard": 1.0}
    sums = TrainStudent(**fields, objective="kd:1+nd:0")
    with open_run() as first, open_run() as second:
        beside = sums(first, data=data, teacher=teacher)
        alone = KnowledgeDistillation(**fields, weight=1.0)(second, data=data, teacher=teacher)
    torch.testing.assert_close(weights(beside), weights(alone))


@pytest.mark.parametrize("width", [4, 6])
def test_embeddings_of_other_sizes_go_through_a_map_that_does_not_remain(data, teacher, open_run, width):
    net = ConvNet(depth=2, width=width, norm="batch")  # the teacher has six channels
    method = NormAndDirection(student=net, train=TRAIN)
    states = []

    class Watched(NormAndDirection):
        def build(self, setting):
            states.append(super().build(setting))
            before.append([parameter.detach().clone() for parameter in states[-1].parameters()])
            return states[-1]

    before = []
    with open_run() as run:
        student = Watched(student=net, train=TRAIN)(run, data=data, teacher=teacher)
    kinds = [type(layer) for layer in states[0].fit] if isinstance(states[0].fit, nn.Sequential) else []
    assert kinds == ([] if width == 6 else [nn.BatchNorm1d, nn.Dropout, nn.Linear])
    assert all(not torch.equal(a, b) for a, b in zip(before[0], states[0].parameters(), strict=True))  # they learned
    assert set(student.tensors()) == set(nets.fresh(net, data, torch.Generator()).state_dict())
    assert dataclasses.replace(method, dropout=0.0).dropout == 0.0


def test_features_turn_towards_their_class_and_grow(data, teacher, open_run):
    net = ConvNet(depth=2, width=6, norm="batch")
    long = dataclasses.replace(TRAIN, steps=60)

    def aligned(weight):
        with open_run() as run:
            method = NormAndDirection(student=net, train=long, weight=weight)
            student = method(run, data=data, teacher=teacher)
        features = student.module.embed(data.normalised()).detach()
        wanted = class_means(teacher.module, data)[data.labels]
        return nn.functional.cosine_similarity(features, wanted).mean().item()

    assert aligned(4.0) > aligned(0.0) + 0.02


def test_the_defaults_are_the_papers_and_alone_it_brings_kd():
    method = build(NormAndDirection, preset="paper")
    found = (method.weight, method.kd, method.temperature, method.warmup_share, method.hard)
    assert found == (2.0, 1.0, 4.0, 20 / 240, 1.0)
    assert method.train.optimizer == SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    assert [method.train.schedule.factor(step, 240) for step in (149, 150, 180, 210)] == pytest.approx(
        [1, 0.1, 0.01, 0.001]
    )

"""FerKD: which crops' labels are mended, what is mixed with what, and a student of stored labels alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from attar import nets
from attar.claims.ferkd import cluttered
from attar.data.plans import order_of
from attar.data.soft_labels import Views
from attar.errors import RecipeError
from attar.methods.model.ferkd import CalibratedLabels
from attar.train.label import LabelSamples
from attar.train.teacher import Teacher
from students import NET, steps

METHOD = CalibratedLabels(student=NET, train=steps(4, batch=8), passes=3, top_k=None, crops=2, mix="none")
TOLD = torch.tensor([[0.6, 0.3, 0.1], [0.25, 0.4, 0.35], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]])
LABELS = torch.tensor([0, 2, 0, 0])


@pytest.fixture
def labels(data, teacher, open_run):
    with open_run(threads=1) as run:
        return LabelSamples(passes=3, views=Views(scale=(0.3, 1.0)))(run, teacher=teacher, data=data)


def calibrated(**fields):
    return dataclasses.replace(METHOD, **fields).calibrated(TOLD, LABELS, torch.Generator().manual_seed(0))


def test_unsure_crops_get_the_softened_label_and_sure_ones_stay():
    targets, kept = calibrated(low=0.5, softening=0.3)
    torch.testing.assert_close(targets[[0, 2, 3]], TOLD[[0, 2, 3]])
    torch.testing.assert_close(targets[1], torch.tensor([0.1, 0.1, 0.8]))
    assert kept.all()
    assert torch.equal(calibrated(low=0.0)[0], TOLD)  # FKD
    by_label, _ = calibrated(low=0.5, softening=0.0, confidence="label")
    torch.testing.assert_close(by_label[2], torch.tensor([1.0, 0.0, 0.0]))  # sure, but of another class


def test_trivial_crops_are_left_out():
    assert calibrated(low=0.5, high=0.8)[1].tolist() == [True, True, True, False]


def test_the_control_mends_as_many_labels_whoever_is_unsure():
    targets, _ = calibrated(low=0.65, softening=0.0, relabel="random")
    changed = (targets != TOLD).any(1)
    assert int(changed.sum()) == 2
    assert changed.tolist() != [True, True, False, False]


def test_selfmix_stays_within_an_image_and_cutmix_does_not():
    images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 8, 8).contiguous()  # three images of two crops
    targets = torch.eye(6)
    for mix, partners in (("selfmix", [1, 0, 3, 2, 5, 4]), ("cutmix", [2, 3, 4, 5, 0, 1])):
        method = dataclasses.replace(METHOD, mix=mix, mix_probability=1.0)
        for seed in range(6):
            mixed, told = method.mixed(images, targets, torch.Generator().manual_seed(seed))
            share = told.diagonal()[0]
            for row, partner in enumerate(partners):
                assert set(mixed[row].unique().tolist()) <= {float(row), float(partner)}
                torch.testing.assert_close(told[row, row] + told[row, partner], torch.tensor(1.0))
                torch.testing.assert_close((mixed[row] == row).float().mean(), share)
    never = dataclasses.replace(METHOD, mix="selfmix", mix_probability=0.0)
    assert torch.equal(never.mixed(images, targets, torch.Generator())[0], images)


def test_a_batch_holds_several_crops_of_each_image(data, labels):
    source = labels.source_of(data)
    samples = torch.tensor([4, 17])
    images, targets = METHOD.lesson(source, data, samples, 3, torch.Generator().manual_seed(1))
    assert len(images) == 4
    every, told = source.batch(torch.arange(len(source)))
    found = [int((every - image).abs().flatten(1).sum(1).argmin()) for image in images]
    assert [row % len(data) for row in found] == [4, 4, 17, 17]
    assert len(set(found)) == 4  # different crops
    torch.testing.assert_close(targets, told[found])


def test_the_student_learns_from_the_store_alone(data, labels, open_run):
    with open_run(threads=1) as run:
        student = dataclasses.replace(METHOD, low=0.5)(run, data=data, teacher=labels)
    source = labels.source_of(data)
    with open_run(threads=1) as run:
        module = nets.fresh(NET, data, run.rng("student"))
        plan = order_of(data, 4, int(run.rng("order").initial_seed()))
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        run._scope.append("distil")
        for step in range(4):
            images, targets = dataclasses.replace(METHOD, low=0.5).lesson(
                source, data, plan.indices(step), 3, run.rng("lesson", step)
            )
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), targets).backward()
            optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(student.module.state_dict()[name], value)


def test_a_network_labels_the_crops_in_a_stage_first(data, teacher, open_run):
    with open_run(threads=1) as run:
        method = dataclasses.replace(METHOD, top_k=2)
        method(run, data=data, teacher=teacher)
        assert set(run.parents) == {"soft labels"}
        stored = method.stored(run, data, Teacher.of(teacher))
    assert len(stored) == 3 * len(data)
    assert stored.store.head.codec.top_k == 2


def test_too_many_crops_are_refused(data, labels, open_run):
    for fields in ({"crops": 4}, {"crops": 1, "mix": "selfmix"}):
        with open_run(threads=1) as run, pytest.raises(RecipeError, match="crops="):
            dataclasses.replace(METHOD, **fields)(run, data=data, teacher=labels)


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_mixed_crops_are_never_mended(mix, data, teacher, open_run):
    mixed = dataclasses.replace(METHOD, views=Views(mix=mix))
    with open_run(threads=1) as run, pytest.raises(RecipeError, match="low=0"):
        mixed(run, data=data, teacher=teacher)
    assert not run.parents  # told before the crops are labelled
    with open_run(threads=1) as run:
        labels = LabelSamples(passes=3, views=mixed.views)(run, teacher=teacher, data=data)
    with open_run(threads=1) as run, pytest.raises(RecipeError, match="low=0"):
        METHOD(run, data=data, teacher=labels)
    with open_run(threads=1) as run:
        dataclasses.replace(METHOD, low=0.0)(run, data=data, teacher=labels)


def test_the_claims_canvas_holds_the_whole_object_somewhere(data):
    made = cluttered(data, torch.Generator().manual_seed(0), side=20)
    assert made.pixels.shape == (len(data), 1, 20, 20)
    windows = made.pixels.unfold(2, 8, 1).unfold(3, 8, 1)[:, 0]
    same = (windows == data.unit()[:, 0, None, None]).flatten(3).all(3)
    assert same.flatten(1).any(1).all()
    assert len(same.flatten(1).float().argmax(1).unique()) > 5  # at different places


def test_the_papers_defaults():
    made = CalibratedLabels()
    assert (made.train.epochs, made.train.batch, made.train.optimizer.lr) == (300, 1024, 0.2)
    assert (made.crops, made.top_k, made.views.scale) == (4, 5, (0.08, 1.0))

"""Self-distilled networks: what a generation minimises, where the share comes from, and that each starts anew."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import RecipeError
from attar.losses.self_distillation import best_share
from attar.methods.model.kernel_self_distillation import SelfDistillation, estimated_share
from attar.nets import MLP
from attar.run import SGD, Adam, Constant
from attar.train.label import LabelSamples
from attar.train.objective import Batch, Progress, StudentTraining
from attar.train.taps import Seen, Told
from attar.train.teacher import Teacher

NET = MLP(width=6, depth=1)
TRAIN = StudentTraining(steps=4, batch=6, augment="none", optimizer=SGD(lr=0.5), schedule=Constant())
METHOD = SelfDistillation(student=NET, train=TRAIN, generations=2, share=0.25)


def weights(student):
    return torch.cat([tensor.flatten() for tensor in student.tensors().values()])


def losses_of(method, data, run, told):
    module = nets.fresh(NET, data, torch.Generator().manual_seed(0))
    images, labels = data.batch(torch.arange(6))
    student = Seen(run, module, images, whole=False, frozen=False)
    found = method.terms(None, Progress(0, 1, 1), student, Told(told), Batch(images, labels, torch.arange(6), 0))
    return {term.name: (term.loss.item(), term.weight) for term in found}, module, images, labels


def test_a_generation_minimises_squared_errors_of_probabilities_and_the_norms(data, open_run):
    told = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    with open_run() as run:
        found, module, images, labels = losses_of(METHOD, data, run, told)
        only_labels = losses_of(dataclasses.replace(METHOD, share=1.0, norm_penalty=0), data, run, told)[0]
        only_told = losses_of(dataclasses.replace(METHOD, share=0.0, norm_penalty=0), data, run, told)[0]
    p = module(images).softmax(1)
    truth = nn.functional.one_hot(labels, 3).float()
    assert found["truth"] == (pytest.approx((p - truth).square().mean().item()), 0.25)
    assert found["generation"] == (pytest.approx((p - told.softmax(1)).square().mean().item()), 0.75)
    lengths = sum(parameter.norm().item() for parameter in module.parameters())
    assert found["norm"] == (pytest.approx(lengths), 1e-4)
    assert set(only_labels) == {"truth"}
    assert set(only_told) == {"generation"}


def test_the_estimated_share_is_the_closed_form_of_both_networks_probabilities(data):
    first, second = (nets.fresh(NET, data, torch.Generator().manual_seed(k)).eval() for k in (0, 1))
    images, labels = data.batch(torch.arange(len(data)))
    told = [module(images).softmax(1).detach() for module in (first, second)]
    wanted = best_share(nn.functional.one_hot(labels, 3), *told)
    assert estimated_share(data, first, second) == pytest.approx(wanted)
    assert 0 <= wanted <= 1


def test_the_second_generation_takes_the_share_that_was_estimated(data, open_run):
    split = data.split(1 / 3, 0)
    best = dataclasses.replace(METHOD, share="best")
    with open_run() as run:
        made = best(run, data=split[0], validation=split[1])
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    (share,) = [row["share of generation 2"] for row in rows if "share of generation 2" in row]
    assert {row["loop"] for row in rows} == {None, "generation 1", "generation 2 without labels", "generation 2"}
    with open_run() as run:
        fixed = dataclasses.replace(METHOD, share=share)(run, data=split[0])
    torch.testing.assert_close(weights(made), weights(fixed))


def test_generations_start_anew_and_a_share_of_one_forgets_the_last(data, open_run):
    found = []
    for generations in (1, 2, 3):
        with open_run() as run:
            method = dataclasses.replace(METHOD, share=1.0, generations=generations, norm_penalty=0)
            found.append(weights(method(run, data=data)))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_a_given_teacher_is_the_first_generation(data, teacher, open_run):
    with open_run() as run:
        dataclasses.replace(METHOD, share=0.0)(run, data=data, teacher=Teacher.of(teacher))
        loops = {json.loads(line)["loop"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()}
    assert loops == {"generation 2"}


def test_stored_labels_are_no_generation(data, teacher, open_run):
    with open_run() as run:
        labels = LabelSamples(passes=1)(run, teacher=teacher, data=data)
    with open_run() as run, pytest.raises(RecipeError, match="no first generation"):
        METHOD(run, data=data, teacher=Teacher.of(labels))


def test_the_defaults_are_the_papers():
    method = SelfDistillation()
    assert (method.generations, method.share, method.norm_penalty) == (5, "best", 1e-4)
    assert (method.train.optimizer, method.train.batch, method.train.epochs) == (Adam(lr=1e-4), 16, 75)

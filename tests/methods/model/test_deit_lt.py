"""DeiT-LT: two tokens, who is shown what, when classes are weighed, the flat teacher, and data with a long tail."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from attar import nets
from attar.artifacts import Student
from attar.data.long_tail import long_tail
from attar.errors import DataError, RecipeError
from attar.losses.long_tail import effective_number_weights, margin_cross_entropy
from attar.methods.model.deit_lt import TailDistillation
from attar.methods.model.distillation_token import token_logits
from attar.methods.model.flat_teacher import FlatTeacher
from attar.metrics.groups import accuracy_by_group
from attar.nets import ConvNet, ViT
from attar.run import SGD, AdamW, Constant
from attar.train.mixing import Mixing, beta_quantile
from attar.train.training import Order, Training
from students import steps

VIT = ViT(patch=4, width=8, depth=1, heads=2, pool="class+distilled")
PLAIN = {"student": VIT, "mixing": Mixing(mixup=0, cutmix=0, smoothing=0), "policy": "none", "beta": 0.9}


def distilled(objective, data, teacher, open_run):
    with open_run(threads=1) as run:
        return objective(run, data=data, teacher=teacher)


@pytest.mark.parametrize("late", [False, True])
def test_a_step_trains_each_token_on_its_own_labels(late, data, teacher, open_run):
    some = data.subset(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 12]))  # 6, 2 and 1 of a class
    objective = TailDistillation(
        train=steps(1, batch=9, lr=1.0), reweight_from=0.0 if late else 1.0, share=0.3, **PLAIN
    )
    with open_run(threads=1) as run:
        found = nets.fresh(VIT, some, run.rng("student"))
        state = objective.teach(run, found, some, teacher)
    with open_run(threads=1) as run:
        module = nets.fresh(VIT, some, run.rng("student"))
        images, labels = Order(some, objective.train, run.rng).batch(0)
    told, offset = teacher.module(images).argmax(1), torch.zeros(3, requires_grad=True)
    own, other = token_logits(module.head, module.embed(images), offset)
    weights = effective_number_weights(torch.tensor([6, 2, 1]), 0.9) if late else None
    assert len(told.unique()) > 1
    loss = 0.7 * nn.functional.cross_entropy(own, labels)
    loss = loss + 0.3 * nn.functional.cross_entropy(other, told, weight=weights)
    trained = (module.head.weight, module.head.bias, offset)
    for old, gradient, new in zip(
        trained, torch.autograd.grad(loss, trained), (found.head.weight, found.head.bias, state.offset), strict=True
    ):
        torch.testing.assert_close(new.detach(), (old - gradient).detach())
    assert state.offset.abs().min() > 0  # each token has a bias of its own


def test_the_teacher_sees_the_mixed_pictures_or_the_clean_ones(data, teacher, open_run):
    seen = []
    hook = teacher.module.register_forward_hook(lambda module, given, output: seen.append(given[0].clone()))
    for shown in ("same", "clean"):
        seen.clear()
        fields = {**PLAIN, "mixing": Mixing(cutmix=0), "train": steps(1, batch=9), "shown": shown}
        objective = TailDistillation(**fields)
        distilled(objective, data, teacher, open_run)
        with open_run(threads=1) as run:
            images = Order(data, objective.train, run.rng).batch(0)[0]
        assert torch.equal(seen[-1], images) == (shown == "clean")
    hook.remove()


def test_mixing_stops_at_a_step_of_its_own(data, open_run):
    objective = TailDistillation(**{**PLAIN, "mixing": Mixing()}, train=steps(4, batch=9), unmix_from=0.5)
    from attar.train.objective import Batch, Setting

    with open_run(threads=1) as run:
        module = nets.fresh(VIT, data, torch.Generator())
        state = objective.build(Setting(run, data, module, None, {}, {}))
        images, labels = data.batch(torch.arange(0, 18, 2))
        early, late = (objective.views(state, Batch(images, labels, torch.arange(9), step), module) for step in (1, 2))
        always = dataclasses.replace(objective, unmix_from=1.0, reweight_from=0.5)
        state = always.build(Setting(run, data, module, None, {}, {}))
        mixed = always.views(state, Batch(images, labels, torch.arange(9), 2), module)
    assert not torch.equal(early.images, images)
    assert torch.equal(late.images, images)
    assert not torch.equal(mixed.images, images)
    assert torch.allclose(late.labels.max(1).values, torch.tensor(0.9 + 0.1 / 3))


def test_mixed_labels_are_the_shares_of_the_pixels():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 8, 8).contiguous()
    labels = torch.arange(4)
    for mixing in (Mixing(cutmix=0, smoothing=0), Mixing(mixup=0, smoothing=0)):
        for seed in range(5):
            mixed, told = mixing.mixed(images, labels, 4, torch.Generator().manual_seed(seed))
            torch.testing.assert_close(mixed.mean((1, 2, 3)), told @ torch.arange(4.0))
            torch.testing.assert_close(told.sum(1), torch.ones(4))
    assert beta_quantile(0.5, 0.8) == pytest.approx(0.5)
    assert beta_quantile(0.3, 1.0) == pytest.approx(0.3)


def test_a_policy_changes_what_both_see(data, teacher, open_run):
    seen = []
    hook = teacher.module.register_forward_hook(lambda module, given, output: seen.append(given[0].clone()))
    objective = TailDistillation(**{**PLAIN, "policy": "randaug"}, train=steps(3, batch=18))
    distilled(objective, data, teacher, open_run)
    hook.remove()
    with open_run(threads=1) as run:
        plain = [Order(data, objective.train, run.rng).batch(step)[0] for step in range(3)]
    assert not all(torch.allclose(a, b, atol=0.05) for a, b in zip(seen[-3:], plain, strict=True))


def test_without_a_teacher_a_flat_one_is_trained_and_labels_may_stand_in(data, open_run):
    flat = FlatTeacher(net=ConvNet(depth=1, width=4, norm="batch"), train=Training(steps=3, batch=9))
    for answers in ("teacher", "labels"):
        with open_run(threads=1, workers=1) as run:
            made = TailDistillation(train=steps(2), flat=flat, answers=answers, **PLAIN)(run, data=data)
            assert isinstance(made, Student)
            assert ("flat teacher" in run.parents) == (answers == "teacher")
    with open_run(threads=1) as run, pytest.raises(RecipeError, match="token of its own"):
        TailDistillation(student=ViT(patch=4, width=8, depth=1, heads=2))(run, data=data)


@pytest.mark.parametrize("radius", [0.0, 0.3])
def test_the_flat_teacher_takes_the_gradient_uphill_and_weighs_late(radius, data, open_run):
    some = data.subset(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 12]))
    net, counts = ConvNet(depth=1, width=4), torch.tensor([6, 2, 1])
    train = Training(steps=2, batch=9, optimizer=SGD(lr=0.1), schedule=Constant())
    method = FlatTeacher(net=net, train=train, radius=radius, reweight_from=0.5, beta=0.9, scale=5.0)
    with open_run(threads=1) as run:
        found = method(run, data=some).module
    with open_run(threads=1) as run:
        module = nets.fresh(net, some, run.rng("net"))
        order = Order(some, train, run.rng)
    parameters = list(module.parameters())
    for step in range(2):
        images, labels = order.batch(step)
        weights = effective_number_weights(counts, 0.9) if step else None

        def gradients(images=images, labels=labels, weights=weights):
            loss = margin_cross_entropy(module(images) / 5, labels, counts, scale=5.0, weights=weights)
            return torch.autograd.grad(loss, parameters)

        before = [p.detach().clone() for p in parameters]
        if radius:
            first = gradients()
            length = torch.cat([g.flatten() for g in first]).norm()
            for p, g in zip(parameters, first, strict=True):
                p.data += radius * g / length
        for p, old, g in zip(parameters, before, gradients(), strict=True):
            p.data = old - 0.1 * g
    for mine, theirs in zip(found.parameters(), parameters, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_long_tail_shrinks_geometrically(tiny_images):
    data = tiny_images(classes=3, each=12)
    cut = long_tail(data, 0.25, torch.Generator().manual_seed(0))
    assert [len(members) for members in cut.by_class] == [12, 6, 3]
    assert len(long_tail(data, 0.01, torch.Generator(), largest=10).by_class[2]) == 1
    with pytest.raises(RecipeError, match="at most 1"):
        long_tail(data, 2.0, torch.Generator())
    with pytest.raises(RecipeError, match="were asked for"):
        long_tail(data, 1.0, torch.Generator(), largest=13)


def test_groups_are_judged_among_all_classes():
    logits = torch.eye(5)[[0, 1, 1, 3, 0]]
    assert accuracy_by_group(logits, torch.tensor([0, 1, 2, 3, 4]), (2, 4)) == [1.0, 0.5, 0.0]
    with pytest.raises(DataError, match="no sample"):
        accuracy_by_group(logits, torch.tensor([0, 1, 1, 1, 1]), (2, 4))


def test_the_papers_defaults():
    made = TailDistillation()
    assert (made.train.epochs, made.train.batch, made.share, made.beta) == (1200, 512, 0.5, 0.9999)
    assert made.train.optimizer == AdamW(lr=5e-4, weight_decay=0.05)
    assert (made.reweight_from * 1200, made.unmix_from * 1200) == pytest.approx((1100, 1100))
    assert (made.mixing.mixup, made.mixing.cutmix, made.mixing.smoothing) == (0.8, 1.0, 0.1)
    assert (made.flat.radius, made.flat.margin) == (0.05, 0.5)

"""MTARD: two teachers, each at its own pictures, and what keeps them in balance."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attar import losses, nets
from attar.errors import RecipeError
from attar.methods.model.adversarial import AdversarialTraining
from attar.methods.model.mtard import BalancedTeachers, balanced_temperatures, balanced_weights, negative_entropy
from attar.metrics.attacks import Attack, attackable
from attar.nets import ConvNet
from attar.run import SGD, Constant, Drop
from attar.spec import build
from attar.train.training import Order, Training
from students import NET, steps

ATTACK = Attack(radius=0.1, step=0.05, steps=3)
METHOD = BalancedTeachers(student=NET, train=steps(2, batch=9, schedule=Drop(at=(0.5,), by=0.1)), attack=ATTACK)


@pytest.fixture
def pair(data, teacher_of):
    return [teacher_of(data, seed=1), teacher_of(data, seed=2, net=ConvNet(depth=1, width=8, norm="batch"))]


def test_the_teacher_of_more_entropy_gets_cooler_within_bounds():
    sharp, flat = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 3)
    assert negative_entropy(flat) < negative_entropy(sharp) < 0
    told = [negative_entropy(flat), negative_entropy(sharp)]
    moved = balanced_temperatures(torch.tensor([2.0, 2.0]), told, 0.5)
    assert moved.tolist() == [1.5, 2.5]
    assert balanced_temperatures(torch.tensor([1.0, 10.0]), told, 0.5).tolist() == [1.0, 10.0]
    assert balanced_temperatures(torch.tensor([2.0, 3.0]), [told[0], told[0]], 0.5).tolist() == [2.0, 3.0]
    expected = float((flat.softmax(1) * (flat.softmax(1) + 1e-5).log()).sum() / 3)
    assert negative_entropy(flat) == pytest.approx(expected)


def test_the_loss_that_is_learned_more_slowly_gains_weight():
    moved = balanced_weights(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]), 0.1)
    torch.testing.assert_close(moved, torch.tensor([0.54, 0.46]))
    torch.testing.assert_close(balanced_weights(moved, torch.tensor([0.3, 0.3]), 1.0), torch.tensor([0.5, 0.5]))


def by_hand(method, data, pair, open_run):
    """Return the student, the weights and the temperatures after the steps, written out."""
    clean, robust = (member.module for member in pair)
    with open_run(threads=1) as run:
        module = nets.fresh(NET, data, run.rng("student"))
        order = Order(data, method.train, run.rng)
        run._scope.append("distil")
        draws = [run.rng("attack", step) for step in range(2)]
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    weights, heat, first = torch.tensor([0.5, 0.5]), torch.ones(2), None
    for step, slower in enumerate((1.0, 0.1)):
        images, labels = order.batch(step)
        with attackable(module, data.normalise) as logits:
            attacked = data.normalise(ATTACK(logits, data.denormalise(images), labels, draws[step]))
        with torch.no_grad():
            told = [robust(attacked) / heat[0], clean(images) / heat[1]]
        found = torch.stack(
            [losses.kl_divergence(module(x), z) / 3 for x, z in zip((attacked, images), told, strict=True)]
        )
        first = found.detach() if first is None else first
        weights = balanced_weights(weights, found.detach() / first, method.weight_rate * slower)
        optimizer.param_groups[0]["lr"] = 0.1 * slower
        optimizer.zero_grad()
        (weights * found).sum().backward()
        optimizer.step()
        heat = balanced_temperatures(heat, [negative_entropy(z) for z in told], method.heat_rate * slower)
    return module, weights, heat


def test_a_training_is_the_algorithm_written_out(data, pair, open_run):
    method = dataclasses.replace(METHOD, weight_rate=0.3, heat_rate=0.2)
    expected, weights, heat = by_hand(method, data, pair, open_run)
    with open_run(threads=1) as run:
        module = nets.fresh(NET, data, run.rng("student"))
        state = method.teach(run, module, data, pair)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)
    torch.testing.assert_close(state.weights, weights)
    torch.testing.assert_close(state.temperatures, heat)
    assert float(heat.max()) > 1.2  # twice in one direction, the second time by a tenth
    assert float((weights - 0.5).abs().max()) > 1e-5


def test_without_balance_weights_stay_and_teachers_keep_their_temperature(data, pair, open_run):
    method = dataclasses.replace(METHOD, balance=False, heat_rate=0.0, share=0.3)
    with open_run(threads=1) as run:
        state = method.teach(run, nets.fresh(NET, data, run.rng("student")), data, pair)
    torch.testing.assert_close(state.weights, torch.tensor([0.7, 0.3]))
    assert state.temperatures.tolist() == [1.0, 1.0]


def test_rslads_teacher_sees_clean_pictures(data, pair, open_run):
    seen = []
    hook = pair[1].module.register_forward_hook(lambda module, given, output: seen.append(given[0].clone()))
    for sees in ("attacked", "clean"):
        seen.clear()
        method = dataclasses.replace(METHOD, robust_sees=sees, train=steps(1, batch=9))
        with open_run(threads=1) as run:
            method(run, data=data, teacher=pair)
            images = Order(data, method.train, run.rng).batch(0)[0]
        assert torch.equal(seen[-1], images) == (sees == "clean")
        assert float((data.denormalise(seen[-1]) - data.denormalise(images)).abs().max()) <= 0.1 + 1e-5
    hook.remove()


def test_two_teachers_are_asked_for_or_trained(data, pair, open_run):
    with open_run(threads=1) as run, pytest.raises(RecipeError, match="CLEAN,ROBUST"):
        METHOD(run, data=data, teacher=pair[0])
    training = Training(steps=2, batch=9, optimizer=SGD(lr=0.1), schedule=Constant())
    method = dataclasses.replace(
        METHOD,
        clean_net=NET,
        robust=AdversarialTraining(net=NET, train=training, attack=ATTACK),
        teaching=dataclasses.replace(METHOD.teaching, epochs=1),
    )
    with open_run(threads=1, workers=1) as run:
        method(run, data=data)
        assert set(run.parents) == {"clean teacher", "robust teacher"}


def test_adversarial_training_learns_attacked_pictures(data, open_run):
    training = Training(steps=1, batch=18, optimizer=SGD(lr=0.5), schedule=Constant())
    method = AdversarialTraining(net=NET, train=training, attack=ATTACK, clean=0.25)
    with open_run(threads=1) as run:
        found = method(run, data=data)
        module = nets.fresh(NET, data, run.rng("net"))
        images, labels = Order(data, training, run.rng).batch(0)
        run._scope.append("train")
        with attackable(module, data.normalise) as logits:
            attacked = data.normalise(ATTACK(logits, data.denormalise(images), labels, run.rng("attack", 0)))
    loss = 0.75 * losses.cross_entropy(module(attacked), labels) + 0.25 * losses.cross_entropy(module(images), labels)
    gradient = torch.autograd.grad(loss, module.head.weight)[0]
    torch.testing.assert_close(found.module.head.weight.detach(), (module.head.weight - 0.5 * gradient).detach())


def test_the_small_preset_is_whole():
    made = build(BalancedTeachers, {}, preset="small")
    assert made.student.norm == made.clean_net.norm == "batch"
    assert made.attack == BalancedTeachers().attack


def test_the_papers_defaults():
    made = BalancedTeachers()
    assert (made.train.epochs, made.train.batch, made.train.optimizer.weight_decay) == (300, 128, 2e-4)
    assert (made.weight_rate, made.heat_rate, made.share, made.hard) == (0.025, 0.001, 0.5, 0.0)
    assert made.attack == Attack(radius=8 / 255, step=2 / 255, steps=10)

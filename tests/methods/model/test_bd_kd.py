"""BD-KD: who learns what from whom, at once and without the other's gradient; the emphasis; several peers."""

import dataclasses

import pytest
import torch
from torch import nn

from attar import losses, nets
from attar.errors import RecipeError
from attar.methods.model.bd_kd import BalancedDivergence
from attar.nets import ConvNet
from attar.run import SGD, Cosine
from attar.train.objective import StudentTraining
from attar.train.teacher import Teacher
from attar.train.training import Order

NET, PEER = ConvNet(depth=1, width=4, norm="batch"), ConvNet(depth=1, width=6, norm="batch")
TRAIN = StudentTraining(steps=4, batch=6, augment="none", optimizer=SGD(lr=0.1), schedule=Cosine())
METHOD = BalancedDivergence(student=NET, peers=(PEER,), train=TRAIN, peer_optimizer=SGD(lr=0.05), weight=0.5)


def flat(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def trained(method, data, run):
    student = method(run, data=data)
    return student.module, [run._state[name].module for name in run._state if name.startswith("peer")]


def test_it_equals_the_joint_loop_written_by_hand(data, open_run):
    with open_run() as run:
        student, (peer,) = trained(METHOD, data, run)
    with open_run() as run:
        mine, theirs = nets.fresh(NET, data, run.rng("student")), nets.fresh(PEER, data, run.rng("peer", 0))
        order = Order(data, TRAIN, run.rng)
    optimizers = [(0.1, torch.optim.SGD(mine.parameters(), 0.1)), (0.05, torch.optim.SGD(theirs.parameters(), 0.05))]
    for step in range(4):
        images, labels = data.batch(order.plan.indices(step))
        z, t = mine(images), theirs(images)
        q, p = (z / 4).softmax(1), (t / 4).softmax(1)
        fixed_p, fixed_q = p.detach(), q.detach()
        entropy = [-(x * x.log()).sum(1) for x in (fixed_p, fixed_q)]
        a = torch.where(entropy[0] > entropy[1], 2.0, 1.0)
        forward, backward = (fixed_p * (fixed_p / q).log()).sum(1), (q * (q / fixed_p).log()).sum(1)
        own = nn.functional.cross_entropy(z, labels) + 0.5 * 16 * (a * forward + (3 - a) * backward).mean()
        other = nn.functional.cross_entropy(t, labels) + 16 * (fixed_q * (fixed_q / p).log()).sum(1).mean()
        for lr, optimizer in optimizers:
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = lr * TRAIN.factor(step, 4)
        (own + other).backward()
        for _, optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(flat(student), flat(mine))
    torch.testing.assert_close(flat(peer), flat(theirs))


def test_peers_learn_the_labels_whatever_the_weight_of_what_they_teach(data, open_run):
    found = []
    for weight in (0.5, 2.0):
        with open_run() as run:
            silent = dataclasses.replace(METHOD, weight=weight, peer_weight=0.0)
            found.append(flat(trained(silent, data, run)[1][0]))
    torch.testing.assert_close(*found)


def test_the_student_is_told_the_mean_of_what_several_peers_say(data, open_run):
    with open_run() as run:
        student, peers = trained(dataclasses.replace(METHOD, peers=(PEER, PEER)), data, run)
        assert len(peers) == 2
        assert not torch.equal(flat(peers[0]), flat(peers[1]))
        lines = (run.folder / "metrics.jsonl").read_text()
    assert "peer 2" in lines
    with open_run() as run:
        assert not torch.equal(flat(trained(METHOD, data, run)[0]), flat(student))


@pytest.mark.parametrize(
    ("form", "loss"),
    [("sum", losses.symmetric_kl), ("forward", losses.kl_divergence), ("reverse", losses.reverse_kl)],
)
def test_rivals_take_one_divergence_or_half_of_both(form, loss):
    student, told = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    method = BalancedDivergence(form=form, temperature=2.0)
    torch.testing.assert_close(method.divergence(student, told), loss(student, told, 2.0))
    even = BalancedDivergence(emphasis=1.0, temperature=2.0)
    torch.testing.assert_close(even.divergence(student, told), 2 * losses.symmetric_kl(student, told, 2.0))
    swapped = BalancedDivergence(swapped=True)
    wanted = losses.balanced_kl(student, told, 4.0, emphasis=2.0, swapped=True)
    torch.testing.assert_close(swapped.divergence(student, told), wanted)


def test_a_teacher_is_refused(data, teacher, open_run):
    with open_run() as run, pytest.raises(RecipeError, match="peers="):
        METHOD(run, data=data, teacher=Teacher.of(teacher))

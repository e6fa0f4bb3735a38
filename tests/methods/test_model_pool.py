"""The pool of KRR-based methods: ages, a step a visit, renewal that starts over, and the optimizer LAMB."""

import copy

import pytest
import torch
from torch.nn import functional

from attar import nets
from attar.methods.data.ridge.lamb import Lamb
from attar.methods.data.ridge.pool import ModelPool, Pool
from attar.nets import ConvNet
from attar.run import SGD

NET = ConvNet(depth=1, width=4, norm="batch")


@pytest.fixture
def data(tiny_images):
    return tiny_images()


@pytest.fixture
def pair(data):
    rng = torch.Generator().manual_seed(3)
    return data.normalised(torch.tensor([0, 12, 24])), torch.randn(3, 3, generator=rng)


def made(run, data, exceed=False, **fields):
    pool = Pool(**{"size": 3, "max_age": 2, "optimizer": SGD(lr=0.1), **fields})
    return ModelPool(run, pool, NET, data, exceed=exceed)


def weights(pool, k=0):
    return torch.cat([p.detach().flatten() for p in pool.networks[k].parameters()]).clone()


def test_networks_differ_and_start_at_the_ages_they_are_given(open_run, data, pair):
    with open_run() as run:
        pool = made(run, data)
        start = [weights(pool, k) for k in range(3)]
        pool.age([0, 2, 1], *pair)
        assert pool.ages == [0, 2, 1]
        moved = [not torch.equal(weights(pool, k), start[k]) for k in range(3)]
    assert moved == [False, True, True]
    assert not torch.equal(start[0], start[1])


def test_a_visit_is_one_step_of_squared_error_with_batch_statistics(open_run, data, pair):
    with open_run() as run:
        pool = made(run, data)
        twin = copy.deepcopy(pool.networks[1]).train()
        functional.mse_loss(twin(pair[0]), pair[1]).backward()
        expected = torch.cat([(p - 0.1 * p.grad).detach().flatten() for p in twin.parameters()])
        for _ in run.loop("visit", 1):
            pool.visit(1, *pair)
        torch.testing.assert_close(weights(pool, 1), expected)
        assert pool.ages == [0, 1, 0]
        norm = pool.networks[1].stages[0][1]
        torch.testing.assert_close(norm.running_mean, twin.stages[0][1].running_mean)
        assert not pool.networks[1].training


def test_the_synthetic_set_gets_no_gradient_of_a_visit(open_run, data, pair):
    images, targets = (x.clone().requires_grad_() for x in pair)
    with open_run() as run:
        pool = made(run, data)
        for _ in run.loop("visit", 1):
            pool.visit(0, images, targets)
    assert images.grad is None
    assert targets.grad is None


def test_a_network_of_the_oldest_age_is_drawn_anew_and_ages_again(open_run, data, pair):
    with open_run() as run:
        pool = made(run, data, size=1)
        ages, seen = [], []
        for _ in run.loop("visit", 9):
            pool.visit(0, *pair)
            ages.append(pool.ages[0])
            seen.append(weights(pool))
    assert ages == [1, 2, 0, 1, 2, 0, 1, 2, 0]  # in the official code of KRR-ST: 1, 2, 0, 0, 0, …
    assert not torch.equal(seen[2], seen[5])  # another network each time
    norm = pool.networks[0].stages[0][1]
    assert norm.running_mean.tolist() == [0.0] * 4
    assert norm.running_var.tolist() == [1.0] * 4


def test_a_network_may_have_to_exceed_the_oldest_age(open_run, data, pair):
    with open_run() as run:
        pool = made(run, data, exceed=True, size=1)
        ages = []
        for _ in run.loop("visit", 6):
            pool.visit(0, *pair)
            ages.append(pool.ages[0])
    assert ages == [1, 2, 3, 0, 1, 2]


def test_large_sets_are_learned_a_sample_at_a_time(open_run, data, monkeypatch):
    seen = []
    images, targets = data.normalised(), functional.one_hot(data.labels, 3).float()
    with open_run() as run:
        pool = made(run, data, batch=5)
        network = pool.networks[0]
        monkeypatch.setattr(network, "forward", lambda x: seen.append(x) or network.head(network.embed(x)))
        for _ in run.loop("visit", 2):
            pool.visit(0, images, targets)
    assert [len(batch) for batch in seen] == [5, 5]
    assert not torch.equal(*seen)


def test_every_network_is_picked_alike(open_run, data):
    with open_run() as run:
        pool = made(run, data)
        counts = torch.bincount(torch.tensor([pool.pick(run.rng("pick", k)) for k in range(300)]))
    assert counts.min() > 70


# ------------------------------------------------------------------ LAMB


def test_lamb_moves_a_tensor_by_its_own_length_along_adams_step():
    """First step of Adam: the sign of the gradient; the tensor is 5 long, the sign √2."""
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    optimizer = Lamb(lr=0.1).build([x])
    x.grad = torch.tensor([2.0, -0.5])
    optimizer.step()
    step = 0.1 * 5 / 2**0.5
    torch.testing.assert_close(x.detach(), torch.tensor([3.0 - step, 4.0 + step]), atol=1e-4, rtol=0)


def test_lambs_second_step_averages_gradients_as_adam_does():
    x, y = (torch.tensor([3.0, 4.0], requires_grad=True) for _ in range(2))
    lamb, adam = Lamb(lr=0.01, eps=1e-8).build([x]), torch.optim.Adam([y], lr=1.0)
    for gradient in ([2.0, -0.5], [-1.0, 1.5]):
        before, reference = x.detach().clone(), y.detach().clone()
        x.grad, y.grad = torch.tensor(gradient), torch.tensor(gradient)
        lamb.step()
        adam.step()
        adams = reference - y.detach()  # at a rate of 1 the step itself, which does not depend on the place
        torch.testing.assert_close(before - x.detach(), 0.01 * before.norm() / adams.norm() * adams)


def test_a_tensor_of_zeros_takes_adams_own_step():
    x = torch.zeros(2, requires_grad=True)
    optimizer = Lamb(lr=0.1).build([x])
    x.grad = torch.tensor([2.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([-0.1, 0.0]), atol=1e-6, rtol=1e-5)


def test_lambs_state_goes_on_where_it_was():
    first, second = (torch.tensor([3.0, 4.0], requires_grad=True) for _ in range(2))
    one, other = (Lamb(lr=0.1).build([x]) for x in (first, second))
    for step in range(3):
        first.grad = torch.tensor([1.0, float(step)])
        one.step()
        if step == 1:
            with torch.no_grad():
                second.copy_(first)
            other.load_state_dict(copy.deepcopy(one.state_dict()))
    second.grad = torch.tensor([1.0, 2.0])
    other.step()
    assert torch.equal(first, second)


def test_the_pool_takes_any_network_and_shape(open_run, data):
    with open_run() as run:
        pool = ModelPool(run, Pool(size=1), nets.MLP(width=4, depth=1), data)
    assert pool.networks[0].num_classes == 3

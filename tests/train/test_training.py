"""The one trainer: the field's schedule, its order of data, and steps that equal a plain loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attar.run import SGD, Constant, Cosine, keys
from attar.train.training import Order, TensorSource, Training, batch_loss, fit, predict


def rng(name, *counters):
    return keys.generator(0, (), name, counters)


def source(count=10, features=4, classes=3, soft=False):
    images = torch.randn(count, 1, 2, features // 2, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % classes
    if soft:
        labels = torch.rand(count, classes, generator=torch.Generator().manual_seed(2)).softmax(1)
    return TensorSource(images, labels)


def network(features=4, classes=3):
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, classes))


@pytest.mark.parametrize(
    ("epochs", "count", "steps"), [(300, 100, 301), (300, 600, 903), (1000, 10, 1001), (0, 256, 1)]
)
def test_there_are_one_more_passes_than_epochs(epochs, count, steps):
    assert Training(epochs=epochs).total(count) == steps
    assert Training(epochs=epochs, steps=7).total(count) == 7


@pytest.mark.parametrize("epochs", [2, 3, 4, 5, 10, 299, 300, 1000])
@pytest.mark.parametrize("batches", [1, 3])
def test_the_rate_drops_tenfold_once_behind_epoch_half_plus_one(epochs, batches):
    training = Training(epochs=epochs, batch=10)
    steps = training.total(10 * batches)
    rate = 1.0
    for epoch in range(epochs + 1):  # the field's loop: the rate changes at the end of epoch E // 2 + 1
        for batch in range(batches):
            assert training.factor(epoch * batches + batch, steps) == pytest.approx(rate)
        if epoch == epochs // 2 + 1:
            rate *= 0.1
    assert rate == 0.1


def test_the_drop_keeps_its_share_where_steps_are_given():
    training = Training(epochs=300, steps=3010)
    assert training.factor(1519, 3010) == 1
    assert training.factor(1520, 3010) == pytest.approx(0.1)


def test_another_schedule_replaces_the_drop():
    assert Training(schedule=Constant()).factor(300, 301) == 1
    assert Training(schedule=Cosine()).factor(150, 300) == pytest.approx(0.5)


@pytest.mark.parametrize("batch", [1, 4, 10, 256])
def test_every_epoch_reads_every_sample_once(batch):
    data = source()
    data.images[:] = torch.arange(10.0)[:, None, None, None]
    order = Order(data, Training(batch=batch), rng)
    per_epoch = -(-10 // min(batch, 10))
    orders = []
    for epoch in range(3):
        batches = [order.batch(epoch * per_epoch + step) for step in range(per_epoch)]
        seen = torch.cat([images[:, 0, 0, 0] for images, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        assert sorted(seen.tolist()) == list(range(10))
        assert torch.equal(labels, seen.long() % 3)
        orders.append(seen.tolist())
    assert orders[0] != orders[1] or batch >= 10  # a whole batch has no order that matters


def test_a_step_can_be_asked_for_first():
    asked = Order(source(), Training(batch=4, augment="dsa"), rng)
    walked = Order(source(), Training(batch=4, augment="dsa"), rng)
    for step in range(7):
        last = walked.batch(step)
    assert all(torch.equal(a, b) for a, b in zip(asked.batch(6), last, strict=True))


def test_augmentation_is_drawn_anew_for_every_step_and_image():
    data = TensorSource(torch.ones(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64))
    order = Order(data, Training(augment="color"), rng)
    first, second = order.batch(0)[0], order.batch(1)[0]
    assert not torch.equal(first, second)
    assert len(first[:, 0, 0, 0].unique()) == 6


def plain(module, data, training, steps):
    """Train as a page of the field's code would."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    order = Order(data, training, rng)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (0.1 if step >= steps // 2 else 1.0)
        images, labels = order.batch(step)
        log_probabilities = module(images).log_softmax(1)
        if labels.dim() == 1:
            labels = F.one_hot(labels, 3).float()
        optimizer.zero_grad()
        (-(labels * log_probabilities).sum(1).mean()).backward()
        optimizer.step()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("batch", [4, 256])
def test_fit_equals_a_plain_loop(soft, batch):
    data = source(soft=soft)
    optimizer = SGD(lr=0.05, momentum=0.9, weight_decay=5e-4)
    # E = 299 drops behind (299 // 2 + 2) / 300, half of the run but for one step in 300
    training = Training(steps=40, epochs=299, batch=batch, optimizer=optimizer)
    ours, theirs = network(), network()
    assert fit(ours, data, training, rng) == 40
    plain(theirs, data, training, 40)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)
    assert not torch.allclose(next(ours.parameters()), next(network().parameters()), atol=1e-2)


def test_one_hot_probabilities_are_hard_labels():
    data = source()
    soft = F.one_hot(data.labels, 3).float()
    module = network()
    assert batch_loss(module, data.images, soft).item() == pytest.approx(
        batch_loss(module, data.images, data.labels).item()
    )


def test_frozen_parameters_stay():
    module = network()
    module[1].requires_grad_(False)
    before = module[1].weight.clone()
    fit(module, source(), Training(steps=3), rng)
    assert torch.equal(module[1].weight, before)


def test_predictions_are_in_order_and_in_evaluation_mode():
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    module.train()
    data = source()
    logits = predict(module, data, chunk=3)
    assert not module.training
    assert torch.allclose(logits, module(data.images), atol=1e-6)
    assert not logits.requires_grad

"""The fast path of evaluation and matching gives what the plain way gives, network by network and class by class."""

import pytest
import torch
from torch import nn

from attar import losses, nets
from attar.data import load
from attar.methods.data.dc import class_distances, class_gradient
from attar.metrics import accuracy
from attar.nets import MLP, ConvNet, LeNet
from attar.nets.convnet import HalfAverage
from attar.run import Plan, keys
from attar.run.fan_out import Shared, fan_out
from attar.train import evaluation
from attar.train.evaluation import Protocol, evaluate
from attar.train.training import Order, TensorSource, Training, fit

NET = ConvNet(depth=2, width=8)
TRAINING = Training(epochs=7, batch=16, augment="dsa")
PROTOCOL = Protocol(net=NET, networks=4, training=TRAINING)
TWO = Plan(workers=2, threads=1)


@pytest.fixture(scope="module")
def mini():
    splits = load("fashion-mnist-mini?size=14")
    test = splits.test.subset(torch.arange(0, len(splits.test), 5))
    return splits.train, test


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def source_of(train, index, per_class=3):
    chosen = train.draw(per_class, torch.Generator().manual_seed(index)).flatten()
    return TensorSource(*train.batch(chosen))


def alone(source, test, index, seed=0):
    """Train network `index` as a plain loop would: one after another, in this process, step by step."""

    def rng(name, *counters):
        return keys.generator(seed, ("evaluate",), name, (index, *counters))

    module = nets.fresh(NET, test, rng("net"))
    order = torch.utils.data.TensorDataset(source.images, source.labels)
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    steps_per_epoch = -(-len(order) // TRAINING.batch)
    planned = Order(source, TRAINING, rng)
    for step in range((TRAINING.epochs + 1) * steps_per_epoch):
        if step == (TRAINING.epochs // 2 + 2) * steps_per_epoch:
            for group in optimizer.param_groups:
                group["lr"] = 0.001
        images, labels = planned.batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        return accuracy(module.eval()(test.normalised()), test.labels)


def accuracies(arms, test, plan=TWO, protocol=PROTOCOL):
    return {row["name"]: row["accuracies"] for row in evaluate(arms, test, protocol, seed=0, plan=plan)}


def test_every_network_gives_what_it_gives_alone(mini):
    train, test = mini
    found = accuracies({"random": lambda index: source_of(train, index)}, test)["random"]
    assert found == [alone(source_of(train, index), test, index) for index in range(4)]
    assert len(set(found)) > 1


def test_workers_and_the_order_of_arms_change_nothing(mini):
    train, test = mini
    arms = {"a": lambda index: source_of(train, 7), "b": lambda index: source_of(train, index)}
    here = accuracies(arms, test, Plan(workers=1))
    assert accuracies(dict(reversed(arms.items())), test) == here
    assert accuracies(arms, test) == here


def test_another_training_set_for_one_network_changes_that_network_alone(mini):
    train, test = mini
    before = accuracies({"arm": lambda index: source_of(train, index)}, test)["arm"]
    after = accuracies({"arm": lambda index: source_of(train, 99 if index == 2 else index)}, test)["arm"]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, True]


def test_a_second_evaluation_in_the_same_processes_gives_the_same(mini):
    train, test = mini
    arms = {"arm": lambda index: source_of(train, index)}
    assert accuracies(arms, test) == accuracies(arms, test)


@pytest.mark.compiler
def test_compiled_training_agrees_and_one_compilation_serves_every_network(mini, monkeypatch, tmp_path):
    train, test = mini
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path))
    protocol = Protocol(net=NET, networks=3, training=Training(epochs=5, batch=30))
    arms = {"arm": lambda index: source_of(train, index)}
    torch._dynamo.utils.counters.clear()
    plain = accuracies(arms, test, Plan(workers=1), protocol)["arm"]
    assert not torch._dynamo.utils.counters["stats"]
    compiled = accuracies(arms, test, Plan(workers=1, compile=True, compile_after=0), protocol)["arm"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert compiled == pytest.approx(plain, abs=2.5 / len(test))  # rounding may turn an image or two


@pytest.mark.compiler
def test_compiled_weights_agree_with_the_plain_loop(mini):
    train, _ = mini
    weights = []
    for compiled in (False, True):
        module, loss_of = evaluation._compiled(NET, 1, 14, 10, "cpu")
        nets.reset(module, torch.Generator().manual_seed(1))
        loss_of = loss_of if compiled else evaluation.batch_loss

        def rng(name, *counters):
            return keys.generator(0, (), name, counters)

        fit(module, source_of(train, 0), Training(steps=20), rng, loss_of)
        weights.append([p.detach().clone() for p in module.parameters()])
    for plain, other in zip(*weights, strict=True):
        assert torch.allclose(plain, other, atol=1e-5)


@pytest.mark.parametrize("size", [2, 7, 14])
def test_pooling_by_slices_is_average_pooling_with_all_its_derivatives(size):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    fast, plain = HalfAverage()(x), nn.functional.avg_pool2d(x, 2)
    assert torch.allclose(fast, plain, atol=1e-12)
    for out in (fast, plain):
        (first,) = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)
        out.first, out.second = first, torch.autograd.grad(first.square().sum(), x)[0]
    assert torch.allclose(fast.first, plain.first, atol=1e-12)
    assert torch.allclose(fast.second, plain.second, atol=1e-12)


@pytest.mark.parametrize("size", [(2, 2), (7, 4), (14, 13)])
def test_pooling_for_the_compiler_is_average_pooling(size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    compiled = torch.compile(HalfAverage(), backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(compiled(x), nn.functional.avg_pool2d(x, 2), atol=1e-12)


# ------------------------------------------------------------- gradient matching


@pytest.mark.parametrize("kind", ["rows", "mse", "cosine"])
@pytest.mark.parametrize(
    "net",
    [
        NET,
        ConvNet(depth=1, width=4, norm="batch"),
        ConvNet(depth=1, width=4, norm="layer", pool="max", activation="leaky"),
        MLP(width=8),
        LeNet(),
        ConvNet(depth=1, width=4, norm="group", activation="swish"),
    ],
    ids=lambda net: f"{net.kind}-{getattr(net, 'norm', '')}",
)
def test_all_classes_together_give_each_class_its_own_gradient(net, kind):
    if kind != "rows" and net is not NET:
        net = MLP(width=8)  # the other distances once
    size = 32 if net.kind == "lenet" else 14
    like = type("Like", (), {"channels": 1, "size": size, "num_classes": 3})()
    network = nets.fresh(net, like, torch.Generator().manual_seed(0)).eval().double()
    images = torch.randn(3, 2, 1, size, size, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    labels = torch.arange(3)
    others = torch.randn(3, 4, 1, size, size, generator=torch.Generator().manual_seed(2)).double()
    real = [class_gradient(network, others[k], labels[k]) for k in range(3)]
    stacked = {name: torch.stack([one[name] for one in real]) for name in real[0]}
    together = class_distances(network, stacked, images, labels, kind)
    parameters = list(network.parameters())
    for k in range(3):
        loss = losses.cross_entropy(network(images[k]), torch.full((2,), k))
        fake = torch.autograd.grad(loss, parameters, create_graph=True)
        one = losses.gradient_distance(fake, list(real[k].values()), kind)
        assert torch.allclose(together[k], one, rtol=1e-8)
        expected = torch.autograd.grad(one, images)[0]
        found = torch.autograd.grad(together[k], images, retain_graph=True)[0]
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------- fan-out


def draw(shared_and_index):
    shared, index = shared_and_index
    return shared.value[index].item(), torch.rand(()).item()


def fail(item):
    if item == 1:
        raise ValueError("item 1 is broken")
    return item


def test_fan_out_keeps_the_order_and_seeds_by_position():
    shared = Shared(torch.arange(10.0))
    items = [(shared, index) for index in range(10)]
    side_by_side = fan_out("test", draw, items, workers=2, threads=1)
    assert [value for value, _ in side_by_side] == list(range(10))
    assert side_by_side == fan_out("test", draw, items, workers=1, threads=1)
    assert len({noise for _, noise in side_by_side}) == 10


def test_an_error_in_one_item_reaches_the_caller():
    with pytest.raises(ValueError, match="item 1 is broken"):
        fan_out("test", fail, [1, 1, 0], workers=2, threads=1)


def test_a_shared_value_is_written_once_and_removed():
    shared = Shared(torch.ones(3))
    first, second = shared.__reduce__(), shared.__reduce__()
    assert first == second
    file = shared._file
    assert file.exists()
    del shared
    assert not file.exists()

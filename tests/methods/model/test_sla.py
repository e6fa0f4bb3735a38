"""SLA: the order of joint labels, aggregation, what teaches the single answer, and what comes out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attar import losses, nets
from attar.artifacts import load
from attar.artifacts.aggregated import Aggregated, AggregatedStudent, aggregated
from attar.data.transformations import count, transformed
from attar.errors import RecipeError
from attar.methods.model.sla import LabelAugmentation
from attar.methods.model.student import TrainStudent
from attar.nets import ConvNet
from attar.train.training import Order
from students import NET, steps


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_turns_and_orders_of_colours_stand_in_a_row_the_identity_first():
    images = some(2, 3, 4, 4)
    turned = transformed(images, "turns")
    assert turned.shape == (8, 3, 4, 4)
    assert torch.equal(turned[0], images[0])
    assert torch.equal(turned[4], images[1])
    assert torch.equal(turned[1, 0, :, 0], images[0, 0, 0].flip(0))  # a quarter turn against the clock
    assert torch.equal(turned[2], images[0].flip(1, 2))
    colours = transformed(images, "three-colours")
    assert torch.equal(colours[1], images[0, [1, 2, 0]])
    for name in ("turns", "colours", "three-colours", "turns-and-colours", "turns-and-three-colours"):
        every = transformed(images, name)
        assert len(every) == 2 * count(name)
        assert len(every[: count(name)].flatten(1).unique(dim=0)) == count(name)  # no two alike
    with pytest.raises(RecipeError, match="three colours"):
        transformed(images[:, :1], "colours")


def test_the_aggregate_reads_of_each_view_what_is_said_of_that_view():
    joint = some(2 * 3, 5 * 3)  # 2 pictures, 3 transformations, 5 classes
    expected = torch.zeros(2, 5)
    for picture in range(2):
        for label in range(5):
            for shown in range(3):
                expected[picture, label] += joint[picture * 3 + shown, label * 3 + shown] / 3
    torch.testing.assert_close(aggregated(joint, 3), expected)


def train(objective, data, open_run):
    with open_run(threads=1) as run:
        return objective(run, data=data)


def by_hand(objective, data, open_run):
    """Return the parameters of student and joint head after the steps, written out."""
    with open_run(threads=1) as run:
        module = nets.fresh(NET, data, run.rng("student"))
        order = Order(data, objective.train, run.rng)
        with nets.initialise.seeded(run.rng("state")):
            head = nn.Linear(module.num_features, 4 * data.num_classes)
    parameters = [*module.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.1)
    for step in range(objective.train.steps):
        images, labels = order.batch(step)
        joint = torch.tensor([4 * label + turn for label in labels.tolist() for turn in range(4)])
        shown = torch.stack([torch.rot90(x, turn, (1, 2)) for x in images for turn in range(4)])
        embedding = module.embed(shown)
        said, single = head(embedding), module.head(embedding)[::4]
        mean = aggregated(said, 4).detach()
        loss = nn.functional.cross_entropy(said, joint) + nn.functional.cross_entropy(single, labels)
        loss = loss + losses.kl_divergence(single, mean, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module, head


def test_a_training_is_the_papers_loss_written_out(data, open_run):
    objective = LabelAugmentation(student=NET, train=steps(3))
    student = train(objective, data, open_run)
    expected, _ = by_hand(objective, data, open_run)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(student.module.state_dict()[name], value)


def test_the_aggregate_asks_its_joint_head_and_is_loaded_back(data, open_run, tmp_path):
    training = steps(12, batch=9)
    whole = train(LabelAugmentation(student=NET, train=training, answer="aggregate"), data, open_run)
    assert isinstance(whole, AggregatedStudent)
    images = data.normalised()
    joint = whole.module.network(transformed(images, "turns"))
    torch.testing.assert_close(whole.module(images), aggregated(joint, 4))
    again = load(whole.save(tmp_path / "artifact"))
    assert isinstance(again.module, Aggregated)
    assert torch.equal(again.module(images), whole.module(images))
    first = train(LabelAugmentation(student=NET, train=training, answer="first"), data, open_run)
    torch.testing.assert_close(first.module(images), whole.module.network(images)[:, ::4])
    assert float((whole.module(images).argmax(1) == data.labels).float().mean()) > 0.6


def test_baselines_show_all_views_with_the_labels_alone_or_a_second_head(data, open_run):
    net = ConvNet(depth=1, width=4, norm="none")
    found = {}
    for labels in ("invariant", "both"):
        objective = LabelAugmentation(student=net, train=steps(1, lr=1.0), labels=labels)
        found[labels] = train(objective, data, open_run).module
    with open_run(threads=1) as run:
        module = nets.fresh(net, data, run.rng("student"))
        images, labels = Order(data, objective.train, run.rng).batch(0)
    logits = module(transformed(images, "turns"))
    nn.functional.cross_entropy(logits, labels.repeat_interleave(4)).backward()
    torch.testing.assert_close(found["invariant"].head.weight, module.head.weight - module.head.weight.grad)
    assert torch.allclose(found["both"].head.weight, found["invariant"].head.weight, atol=1e-5)
    assert not torch.allclose(found["both"].stages[0][0].weight, found["invariant"].stages[0][0].weight, atol=1e-5)


def test_the_sum_over_views_is_as_many_times_their_mean(data, open_run):
    one = {"student": NET, "hard": 0.0, "beta": 0.0, "train": steps(1)}
    mean, total = (train(LabelAugmentation(**one, sum_views=many), data, open_run) for many in (False, True))
    before = train(LabelAugmentation(**{**one, "train": steps(1, lr=0.0)}), data, open_run)
    start, once, often = (made.module.stages[0][0].weight.detach() for made in (before, mean, total))
    torch.testing.assert_close(often - start, 4 * (once - start), rtol=1e-3, atol=1e-6)


def test_a_sum_shows_all_its_parts_the_same_views(data, teacher, open_run):
    objective = TrainStudent(student=NET, train=steps(2), objective="sla+kd+dkd")
    with open_run(threads=1) as run:
        student = objective(run, data=data, teacher=teacher)
    assert all(torch.isfinite(value).all() for value in student.tensors().values())


def test_the_papers_defaults():
    made = LabelAugmentation()
    assert (made.train.steps, made.train.batch, made.train.optimizer.lr) == (80_000, 128, 0.1)
    assert (made.train.optimizer.weight_decay, made.train.schedule.at) == (1e-4, (0.5, 0.75))
    assert (made.temperature, made.beta, made.transformations) == (1.0, 1.0, "turns")

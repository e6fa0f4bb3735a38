"""Experts follow their optimizer, survive kills, and are refused where they do not fit; segments are drawn as said."""

import pytest
import torch
from scipy.stats import chisquare

from attar.artifacts import load
from attar.artifacts.trajectories import Trajectories
from attar.errors import AttarError, RecipeError
from attar.losses import cross_entropy
from attar.losses.trajectory import input_gradient_penalty
from attar.methods.data.trajectory import experts as recording
from attar.methods.data.trajectory.experts import ExpertLoss, ExpertRecipe, Flat, RecordExperts, accuracy_of, loss_rise
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.segments import Window, walk
from attar.nets import MLP, ConvNet
from attar.run import SGD, Drop, Plan, Run, keys
from attar.spec import build

NET = ConvNet(depth=1, width=3)


def recipe(**fields):
    return ExpertRecipe(**{"count": 2, "epochs": 3, "batch": 8, "augment": "none", **fields})


def record(open_run, data, **fields):
    with open_run() as run:
        return RecordExperts(net=NET, recipe=recipe(**fields))(run, data=data)


# ------------------------------------------------------------------ the flat network


def test_flat_network_is_the_module_on_a_vector():
    class Shape:
        channels, size, num_classes = 2, 8, 5

    network = FlatNetwork(NET, Shape)
    weights = network.fresh(torch.Generator().manual_seed(1))
    module = NET.build(2, 8, 5)
    torch.nn.utils.vector_to_parameters(weights, module.parameters())
    x = torch.randn(4, 2, 8, 8)
    assert network.count == sum(p.numel() for p in module.parameters())
    assert torch.equal(network(weights, x), module(x))
    (where,) = network.slices(torch.nn.Conv2d)
    assert torch.equal(weights[where], module.stages[0][0].weight.reshape(-1))
    assert not torch.equal(weights, network.fresh(torch.Generator().manual_seed(2)))


def test_batch_norm_in_a_flat_network_uses_its_batch_and_keeps_nothing():
    class Shape:
        channels, size, num_classes = 1, 8, 3

    network = FlatNetwork(ConvNet(depth=1, width=3, norm="batch"), Shape)
    weights = network.fresh(torch.Generator().manual_seed(1))
    x = torch.randn(6, 1, 8, 8)
    first = network(weights, x)
    network(weights, 3 * x + 1)
    assert torch.equal(network(weights, x), first)
    assert not dict(network.module.named_buffers())


# ------------------------------------------------------------------ experts


def by_torch(data, fields, start, run_key, penalty=0.0):
    """Train one expert with torch's own SGD on the batches the recorder read; return its snapshots."""
    made = recipe(**fields)
    module = NET.build(data.channels, data.size, data.num_classes)
    torch.nn.utils.vector_to_parameters(start.clone(), module.parameters())
    sgd = made.optimizer
    optimizer = torch.optim.SGD(
        module.parameters(), sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay, nesterov=sgd.nesterov
    )
    path = [start]
    for epoch in range(made.epochs):
        for group in optimizer.param_groups:
            group["lr"] = sgd.lr * made.schedule.factor(epoch, made.epochs)
        order = torch.randperm(len(data), generator=keys.generator(run_key(epoch), (), "order", ()))
        for indices in order.split(made.batch):
            images, labels = data.batch(indices)
            loss = made.loss_scale(epoch) * cross_entropy(module(images), labels)
            if penalty:
                x = images.clone().requires_grad_()
                loss = loss + penalty * input_gradient_penalty(module(x), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        path.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
    return torch.stack(path)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": SGD(lr=0.05, momentum=0.9, weight_decay=0.01), "schedule": Drop(at=(0.5,), by=0.6)},
        {"optimizer": SGD(lr=0.05, momentum=0.9, nesterov=True)},
        {"ramp": 2},
        {"penalty": 2.0},
    ],
    ids=["plain", "momentum and drop", "nesterov", "ramp", "penalty"],
)
def test_an_expert_is_what_torchs_sgd_makes(fields, tiny_images, open_run):
    data = tiny_images()
    with open_run() as run:
        made = RecordExperts(net=NET, recipe=recipe(**fields))(run, data=data)
        for index, path in enumerate(made.experts):
            expected = by_torch(
                data,
                fields,
                path[0],
                lambda epoch, index=index: keys.key(0, ["record"], "expert", (index, epoch)),
                fields.get("penalty", 0.0),
            )
            assert torch.allclose(path, expected, atol=1e-5)
            assert (path[-1] - path[0]).norm() > 0.01
    assert not torch.equal(made.experts[0][0], made.experts[1][0])


def test_the_gradient_penalty_is_on_images_that_are_not_augmented(tiny_images, open_run, monkeypatch):
    penalised, shown, data, call = [], [], tiny_images(), FlatNetwork.__call__
    monkeypatch.setattr(
        recording,
        "input_gradient_penalty",
        lambda logits, images: penalised.append(images.detach()) or input_gradient_penalty(logits, images),
    )
    monkeypatch.setattr(
        FlatNetwork, "__call__", lambda self, *given: shown.append(given[1].detach()) or call(self, *given)
    )
    record(open_run, data, count=1, epochs=1, batch=36, augment="color", penalty=2.0)
    augmented, plain = shown
    assert torch.equal(plain, penalised[0])
    assert torch.equal(plain.sort(0).values, data.normalised().sort(0).values)
    assert not torch.isclose(augmented, plain).flatten(1).all(1).any()


def test_the_ramp_counts_half_at_first_and_all_in_the_end():
    ramp = ExpertRecipe(ramp=10)
    assert [ramp.loss_scale(epoch) for epoch in (0, 1, 9, 10, 30)] == pytest.approx([0.5, 0.55, 0.95, 1, 1])
    assert ExpertRecipe().loss_scale(0) == 1


def test_flat_directions_by_hand_on_a_quadratic(monkeypatch):
    curvature = torch.tensor([4.0, 1.0])

    class Quadratic(ExpertLoss):
        def __call__(self, parameters):
            return 0.5 * (curvature * parameters.square()).sum()

    loss_of = Quadratic(None, None, None, None)
    weights = torch.tensor([1.0, 2.0])
    gradient = curvature * weights  # (4, 2)
    # e = ρ w²⊙g / ‖|w|⊙g‖ = ρ (4, 8) / √(16 + 16)
    climbed = curvature * (weights + 0.1 * torch.tensor([4.0, 8.0]) / 32**0.5)
    across = gradient - (gradient @ climbed) / (climbed @ climbed) * climbed
    _, direction = recording.expert_direction(loss_of, weights, Flat(rho=0.1, alpha=0.5))
    assert torch.allclose(direction, climbed - 0.5 * across)
    _, plain = recording.expert_direction(loss_of, weights, None)
    assert torch.equal(plain, gradient)


def test_a_small_radius_makes_flat_experts_plain_ones(tiny_images, open_run):
    data = tiny_images()
    plain = record(open_run, data).experts[0]
    nearly = record(open_run, data, flat=Flat(rho=1e-6, alpha=0.0)).experts[0]
    flat = record(open_run, data, flat=Flat(rho=0.2, alpha=0.5)).experts[0]
    assert torch.allclose(plain, nearly, atol=1e-4)
    assert not torch.allclose(plain, flat, atol=1e-3)


def test_loss_rise_is_zero_without_noise_and_grows_with_it(tiny_images, open_run):
    data = tiny_images()
    expert = record(open_run, data, epochs=6, optimizer=SGD(lr=0.2)).experts[0]
    network, batch = FlatNetwork(NET, data), data.batch(torch.arange(len(data)))
    rises = [
        sum(loss_rise(network, expert[-1], *batch, keys.generator(k, (), "", ()), noise=noise) for k in range(20))
        for noise in (0.0, 0.05, 0.5)
    ]
    assert rises[0] == 0
    assert rises[1] < rises[2]
    assert accuracy_of(network, expert[-1], data) > accuracy_of(network, expert[0], data)


def test_experts_do_not_depend_on_how_many_work_side_by_side_or_on_their_group(tiny_images, open_run, monkeypatch):
    data = tiny_images()
    together = record(open_run, data, count=3)
    monkeypatch.setattr(recording, "GROUP", 2)
    apart = record(open_run, data, count=3)
    assert len(together) == len(apart) == 3
    assert together.fingerprint == apart.fingerprint


def test_a_killed_recording_goes_on_and_ends_the_same(tiny_images, open_run, monkeypatch):
    data = tiny_images()
    method = RecordExperts(net=NET, recipe=recipe(epochs=4))
    with open_run() as run:
        whole = method(run, data=data)
    run = open_run()
    run.checkpoint_seconds = 0
    train, done = recording.train_epoch, []

    def dies(job):
        done.append(job.epoch)
        if len(done) == 6:
            raise KeyboardInterrupt
        return train(job)

    monkeypatch.setattr(recording, "train_epoch", dies)
    with pytest.raises(KeyboardInterrupt), run:
        method(run, data=data)
    again = type(run)(run.folder, plan=run.plan)
    monkeypatch.setattr(recording, "train_epoch", lambda job: (done.append(job.epoch), train(job))[1])
    with again:
        made = method(again, data=data)
    assert made.fingerprint == whole.fingerprint
    assert done[6:] == [2, 2, 3, 3]  # what was whole is not done again


@pytest.mark.compiler
@pytest.mark.parametrize(("fields", "graphs"), [({}, 1), ({"penalty": 1.0}, 0)])
def test_compiled_experts_are_the_same_up_to_rounding_and_compiled_once(
    fields, graphs, tiny_images, monkeypatch, tmp_path
):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path))
    recording._compiled.cache_clear()
    torch._dynamo.utils.counters.clear()
    data, ends = tiny_images(), []
    for compiled in (False, True):
        plan = Plan(compile=compiled, compile_after=0)
        with Run(tmp_path / str(compiled), plan=plan) as run:
            made = RecordExperts(net=ConvNet(depth=2, width=8), recipe=recipe(batch=len(data), **fields))(
                run, data=data
            )
        ends.append(made.experts)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # one serves all epochs of all experts
    for plain, other in zip(*ends, strict=True):
        assert torch.allclose(plain, other, atol=1e-5)


def test_experts_see_as_many_images_as_asked_alike_of_every_class(tiny_images, open_run, monkeypatch):
    sizes, train = [], recording.train_epoch
    monkeypatch.setattr(
        recording, "train_epoch", lambda job: (sizes.append(job.data.value.labels.bincount().tolist()), train(job))[1]
    )
    record(open_run, tiny_images(), images=12, epochs=1)
    assert sizes == [[4, 4, 4]] * 2


def test_trajectories_load_back_and_know_their_steps(tiny_images, open_run, tmp_path):
    made = record(open_run, tiny_images())
    back = load(made.save(tmp_path / "experts"))
    assert isinstance(back, Trajectories)
    assert back.fingerprint == made.fingerprint
    assert (len(back), back.epochs, back.num_classes, back.net) == (2, 3, 3, NET)
    assert back.parameters == FlatNetwork(NET, back).count
    expected = [[(path[e + 1] - path[e]).norm().item() for e in range(3)] for path in made.experts]
    assert torch.allclose(back.step_lengths(), torch.tensor(expected))


def test_experts_of_another_network_or_other_data_are_refused(tiny_images, open_run):
    data = tiny_images()
    made = record(open_run, data)
    made.check(NET, data)
    with pytest.raises(AttarError, match=r"another network .*net\.width=3"):
        made.check(ConvNet(depth=1, width=4), data)
    with pytest.raises(AttarError, match="another network"):
        made.check(MLP(), data)
    with pytest.raises(AttarError, match="other data"):
        made.check(NET, tiny_images(seed=8))


# ------------------------------------------------------------------ segments


def test_every_start_of_a_window_is_as_likely():
    window = Window(first=3, stop=8)
    drawn = torch.tensor([window.draw(step, keys.generator(0, (), "epoch", (step,))) for step in range(2000)])
    counts = drawn.bincount(minlength=9)
    assert counts[:3].sum() == counts[8:].sum() == 0
    assert chisquare(counts[3:8].numpy()).pvalue > 0.01


def test_a_growing_window_grows_by_its_formula():
    window = Window(first=0, grow_from=10, stop=20, grow_over=1000)
    # min(T⁺, T + ⌊(T⁺ − T) · it / E⌋)
    assert [window.bound(step) for step in (0, 99, 100, 555, 999, 1000, 5000)] == [10, 10, 11, 15, 19, 20, 20]
    assert Window(stop=4).bound(0) == 4
    starts = {window.draw(0, keys.generator(0, (), "epoch", (k,))) for k in range(300)}
    assert starts == set(range(10))


@pytest.mark.parametrize("fields", [{"first": 4, "stop": 4}, {"stop": 4, "grow_from": 5}, {"first": 2, "grow_from": 2}])
def test_an_empty_window_is_refused(fields):
    with pytest.raises(RecipeError, match="window starts at first"):
        build(Window, fields)


def test_a_walk_reads_every_image_before_any_twice():
    batches = walk(10, 4, 6, "none", (1, 8, 8), order=3, rng=torch.Generator())
    assert [len(batch.indices) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = (torch.cat([b.indices for b in batches[k : k + 3]]) for k in (0, 3))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    whole = walk(10, None, 2, "none", (1, 8, 8), order=3, rng=torch.Generator())
    assert [len(batch.indices) for batch in whole] == [10, 10]


def test_each_step_of_a_walk_has_its_own_view_for_every_image():
    batches = walk(6, None, 20, "dsa", (1, 8, 8), order=3, rng=torch.Generator().manual_seed(4))
    views = [batch.view.state() for batch in batches]
    assert len({str(view) for view in views}) == 20
    assert any(len(values) == 6 for view in views for _, drawn in view for values in drawn.values() if values != 4)

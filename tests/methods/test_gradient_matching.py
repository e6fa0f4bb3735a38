"""DC and DSA do what their algorithm boxes say, held against a second, plain writing of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attar import nets
from attar.artifacts import DistilledSet
from attar.data.augment import DSA, View
from attar.methods.data import dc
from attar.methods.data.dc import GradientMatching, settle_batch_norm
from attar.methods.data.dsa import SiameseAugmentation
from attar.nets import ConvNet
from attar.run import SGD, Learner
from attar.train.training import Training

NET = ConvNet(depth=1, width=3)
FIELDS = {"ipc": 2, "net": NET, "real_batch": 12}  # twelve a class: every batch is the whole class


class Watch:
    """What a run did: the weights of its networks, the views of its matches, what it trained, the start."""

    def __init__(self, monkeypatch):
        self.weights, self.views, self.trained, self.starts, self.applied, self.drawn = [], [], [], [], [], []
        reset, fit, apply, draw, watch = nets.reset, dc.fit, View.__call__, DSA.draw, self

        def watched_reset(module, rng):
            reset(module, rng)
            watch.weights.append({name: value.clone() for name, value in module.state_dict().items()})

        def watched_fit(module, source, training, rng, *more):
            watch.trained.append((len(watch.weights), len(watch.views), training, source.images.clone()))
            return fit(module, source, training, rng, *more)

        def watched_view(view, x):
            watch.applied.append((view.state(), len(x)))
            return apply(view, x)

        def watched_draw(self, n, shape, rng, siamese=False):
            watch.drawn.append((n, siamese))
            return draw(self, n, shape, rng, siamese)

        class Views(dc.SiameseViews):
            def __init__(self, *given):
                super().__init__(*given)
                watch.views.append(self)

        monkeypatch.setattr(nets, "reset", watched_reset)
        monkeypatch.setattr(dc, "fit", watched_fit)
        monkeypatch.setattr(dc, "SiameseViews", Views)
        monkeypatch.setattr(View, "__call__", watched_view)
        monkeypatch.setattr(DSA, "draw", watched_draw)
        for name in ("from_real", "from_noise"):
            start = getattr(DistilledSet, name).__func__

            def watched_start(cls, *given, start=start, **hints):
                made = start(cls, *given, **hints)
                watch.starts.append(made.images.clone())
                return made

            monkeypatch.setattr(DistilledSet, name, classmethod(watched_start))


def class_distance(network, real, fake, label):
    """Return the distance of one class, as the card writes it."""

    def gradient(images, **more):
        loss = F.cross_entropy(network(images), torch.full((len(images),), label))
        return torch.autograd.grad(loss, list(network.parameters()), **more)

    total = torch.zeros(())
    for a, b in zip(gradient(fake, create_graph=True), gradient(real), strict=True):
        if a.dim() >= 2:
            for row_a, row_b in zip(a.flatten(1), b.flatten(1), strict=True):
                total = total + 1 - (row_a @ row_b) / (row_a.norm() * row_b.norm() + 1e-6)
    return total


def by_the_card(watch, data, method, updates, epochs):
    """Run the card's algorithm on whole classes with the run's networks and views; return the pixels."""
    x, velocity, views = watch.starts[0].clone(), 0, iter(list(watch.views))
    labels = torch.arange(data.num_classes).repeat_interleave(method.ipc)
    for weights in list(watch.weights):
        network = NET.build(data.channels, data.size, data.num_classes)
        network.load_state_dict(weights)
        for update in range(updates):
            x, view = x.detach().requires_grad_(), next(views)
            total = 0
            for label, members in enumerate(data.by_class):
                one = slice(label, label + 1)
                real = view(data.normalised(members)[None], one)
                fake = view(x[label * method.ipc : (label + 1) * method.ipc][None], one)
                total = total + class_distance(network, real, fake, label)
            (gradient,) = torch.autograd.grad(total, x)
            velocity = method.optimizer.momentum * velocity + gradient
            x = (x - method.optimizer.lr * velocity).detach()
            if update < updates - 1:
                optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
                for _ in range(epochs):
                    optimizer.zero_grad()
                    F.cross_entropy(network(x), labels).backward()
                    optimizer.step()
    return x


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (GradientMatching, {"init": "noise"}),
        (GradientMatching, {"init": "real", "optimizer": SGD(lr=0.3, momentum=0.9)}),
        (GradientMatching, {"augment": "color_crop_rotate"}),
    ],
)
def test_pixels_follow_the_cards_algorithm(cls, fields, tiny_images, open_run, monkeypatch):
    data, epochs = tiny_images(), 0 if "augment" in fields else 15
    method = cls(**FIELDS, steps=2, updates=3, epochs=epochs, **fields)
    watch = Watch(monkeypatch)
    with open_run() as run:
        made = method(run, data=data).images
    expected = by_the_card(watch, data, method, 3, epochs)
    assert len(watch.weights) == 2  # a new network every outer round, none between its updates
    assert (expected - watch.starts[0]).abs().max() > 0.05
    assert torch.allclose(made, expected, atol=1e-4)


def test_momentum_and_inner_training_are_felt(tiny_images, open_run, monkeypatch):
    """Without either, the plain writing gives other pixels: the test above would notice."""
    data, method = tiny_images(), GradientMatching(**FIELDS, steps=2, updates=3, epochs=15)
    watch = Watch(monkeypatch)
    with open_run() as run:
        made = method(run, data=data).images
    untrained = by_the_card(watch, data, method, 3, 0)
    forgetful = by_the_card(watch, data, GradientMatching(**FIELDS, optimizer=SGD(lr=0.1)), 3, 15)
    for other in (untrained, forgetful):
        assert (made - other).abs().max() > 1e-3


def test_images_step_once_for_the_sum_over_classes(tiny_images, open_run, monkeypatch):
    steps, step = [], Learner.step
    monkeypatch.setattr(Learner, "step", lambda self: (steps.append(self.name), step(self))[1])
    with open_run() as run:
        GradientMatching(**FIELDS, steps=2, updates=3, epochs=0)(run, data=tiny_images())
    assert steps == ["pixels"] * 6


def test_the_network_trains_between_updates_and_not_behind_the_last(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    with open_run() as run:
        GradientMatching(**FIELDS, steps=2, updates=3, epochs=4)(run, data=tiny_images())
    assert [(network, update) for network, update, *_ in watch.trained] == [(1, 1), (1, 2), (2, 4), (2, 5)]
    training = watch.trained[0][2]
    assert (training.steps, training.batch, training.augment) == (4, 256, "none")
    assert training.optimizer == SGD(lr=0.01)
    assert training.factor(3, 4) == 1
    assert not torch.equal(watch.trained[0][3], watch.trained[1][3])  # on the images as they are now


@pytest.mark.parametrize(
    ("ipc", "updates", "epochs"),
    [(1, 1, None), (10, 10, 50), (20, 20, 25), (30, 30, 20), (40, 40, 15), (50, 50, 10), (100, 50, 10)],
)
def test_updates_and_epochs_come_from_the_papers_table(ipc, updates, epochs):
    count = 10 * ipc
    found, training = GradientMatching(ipc=ipc).path(count)
    assert found == updates
    assert (training and training.steps) == (epochs and epochs * -(-count // 256))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"ipc": 4}, "4 images a class; where they are not set, those for 1 are taken: updates=1 and epochs=1"),
        ({"ipc": 4, "updates": 1}, "those for 1 are taken"),
        ({"ipc": 4, "updates": 1, "epochs": 0}, ""),
        ({"ipc": 1}, ""),
    ],
)
def test_what_the_papers_table_does_not_list_is_told(fields, told, tiny_images, open_run, capsys):
    with open_run() as run:
        GradientMatching(**{**FIELDS, **fields}, steps=1)(run, data=tiny_images())
    said = capsys.readouterr().err
    assert told in said
    assert bool(said) == bool(told)


@pytest.mark.compiler
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_network_whose_training_is_compiled_once_matches_the_same_images(norm, tiny_images, open_run):
    torch._dynamo.utils.counters.clear()
    method = GradientMatching(**{**FIELDS, "net": ConvNet(depth=2, width=3, norm=norm)}, steps=2, updates=2, epochs=3)
    made = []
    for compiled in (False, True):
        with open_run(compile=compiled, compile_after=method.steps * 3 * 6) as run:  # images that the networks see
            made.append(method(run, data=tiny_images()).images)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert torch.allclose(*made, atol=1e-4)


def test_one_image_a_class_never_trains_the_network(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    with open_run() as run:
        GradientMatching(ipc=1, net=NET, real_batch=4, steps=3)(run, data=tiny_images())
    assert watch.trained == []
    assert len(watch.weights) == 3


def test_batch_norms_see_real_images_once_and_are_frozen_for_the_match(tiny_images):
    data = tiny_images(channels=2)
    network = nets.fresh(ConvNet(depth=1, width=3, norm="batch"), data, torch.Generator().manual_seed(0))
    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    hook = norm.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    settle_batch_norm(network, data.normalised())
    hook.remove()
    assert len(seen) == 1
    assert torch.allclose(norm.running_mean, 0.1 * seen[0].mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * seen[0].var((0, 2, 3)), atol=1e-5)
    assert not norm.training
    assert network.stages[0].training


def test_a_batch_norm_network_is_settled_before_every_match_on_sixteen_images_a_class(
    tiny_images, open_run, monkeypatch
):
    settled, gradients = [], []
    settle, gradient = dc.settle_batch_norm, dc.class_gradient

    def watched_gradient(network, *given, **more):
        norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
        before = norm.running_mean.clone()
        out = gradient(network, *given, **more)
        gradients.append((norm.training, torch.equal(before, norm.running_mean)))
        return out

    monkeypatch.setattr(dc, "settle_batch_norm", lambda net, x: (settled.append(len(x)), settle(net, x))[1])
    monkeypatch.setattr(dc, "class_gradient", watched_gradient)
    with open_run() as run:
        GradientMatching(
            ipc=2, net=ConvNet(depth=1, width=3, norm="batch"), real_batch=4, steps=1, updates=3, epochs=1
        )(run, data=tiny_images(each=20))
    assert settled == [48] * 3
    assert gradients == [(False, True)] * 9  # three updates, three classes


# --------------------------------------------------------------------- DSA


def test_dsa_without_augmentation_is_dc_from_real_images(tiny_images, open_run):
    made = []
    fields = {**FIELDS, "steps": 2, "updates": 2, "epochs": 3}
    for method in (
        SiameseAugmentation(**fields, augment="none"),
        GradientMatching(**fields, init="real"),
        SiameseAugmentation(**fields),
    ):
        with open_run() as run:
            made.append(method(run, data=tiny_images()).images)
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=1e-3)


def test_dsa_shares_one_draw_between_real_and_synthetic_images_of_a_class(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    with open_run() as run:
        SiameseAugmentation(**FIELDS, steps=2, updates=2, epochs=0)(run, data=tiny_images())
    real = [state for state, count in watch.applied if count == 12]
    fake = [state for state, count in watch.applied if count == 2]
    assert real == fake
    assert len(real) == 12  # four updates of three classes
    assert len({str(state) for state in real}) > 8  # alike only where two flips or shifts fell out alike
    assert all(siamese for _, siamese in watch.drawn)


def test_dsa_trains_the_network_on_images_augmented_one_by_one(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    with open_run() as run:
        SiameseAugmentation(**FIELDS, steps=1, updates=2, epochs=5)(run, data=tiny_images())
    assert watch.trained[0][2].augment == "dsa"
    assert watch.drawn.count((6, False)) == 5  # a draw for the six images in each of five epochs
    inner = [state for state, count in watch.applied if count == 6]
    assert len({str(state) for state in inner}) == 5


def test_the_hint_says_how_the_paper_judges_its_images(tiny_images, open_run):
    for method, protocol in ((GradientMatching, "dc"), (SiameseAugmentation, "dsa")):
        with open_run() as run:
            made = method(ipc=1, net=NET, real_batch=2, steps=1, updates=1)(run, data=tiny_images())
        assert made.hints == {"protocol": protocol}


def test_defaults_are_the_papers():
    base, siamese = GradientMatching(), SiameseAugmentation()
    for method in (base, siamese):
        assert (method.ipc, method.steps, method.real_batch, method.distance) == (10, 1000, 256, "rows")
        assert method.optimizer == SGD(lr=0.1, momentum=0.5)
        assert method.net_optimizer == SGD(lr=0.01)
        assert method.net == ConvNet(depth=3, width=128)
        assert set(method.presets["small"]) <= {"steps", "updates", "epochs", "real_batch", "net", "ipc=1"}
    assert (base.init, base.augment) == ("noise", "none")
    assert (siamese.init, siamese.augment) == ("real", "dsa")
    assert isinstance(base.path(100)[1], Training)

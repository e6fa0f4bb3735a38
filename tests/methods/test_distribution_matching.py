"""DM does what its equation says: mean embeddings, one view a class, a fresh frozen network in every step."""

import pytest
import torch

from attar import nets
from attar.artifacts import DistilledSet
from attar.data.augment import View
from attar.methods.data import dm
from attar.methods.data.dm import DistributionMatching
from attar.nets import ConvNet
from attar.nets.network import Network
from attar.run import SGD

NET = ConvNet(depth=1, width=3)
FIELDS = {"ipc": 2, "net": NET, "real_batch": 12}  # twelve a class: every batch is the whole class


class Watch:
    """What a run of DM did: the networks' weights, the views, what went through them, and the first images."""

    def __init__(self, monkeypatch):
        self.weights, self.views, self.embedded, self.applied, self.starts = [], [], [], [], []
        reset, embed, apply, from_real = nets.reset, Network.embed, View.__call__, DistilledSet.from_real.__func__
        watch = self

        def watched_reset(module, rng):
            reset(module, rng)
            watch.weights.append({name: value.clone() for name, value in module.state_dict().items()})

        def watched_embed(module, x):
            out = embed(module, x)
            watch.embedded.append((len(x), out.requires_grad))
            return out

        def watched_view(view, x):
            watch.applied.append((view.state(), len(x)))
            return apply(view, x)

        def watched_start(cls, *given, **hints):
            made = from_real(cls, *given, **hints)
            watch.starts.append(made.images.clone())
            return made

        class Views(dm.SiameseViews):
            def __init__(self, *given):
                super().__init__(*given)
                watch.views.append(self)

        monkeypatch.setattr(nets, "reset", watched_reset)
        monkeypatch.setattr(Network, "embed", watched_embed)
        monkeypatch.setattr(View, "__call__", watched_view)
        monkeypatch.setattr(DistilledSet, "from_real", classmethod(watched_start))
        monkeypatch.setattr(dm, "SiameseViews", Views)


def by_the_card(watch, data, optimizer, ipc):
    """Run the card's algorithm on whole classes, with the networks and views that the run had; return the pixels."""
    x, velocity = watch.starts[0].clone(), 0
    for weights, views in zip(list(watch.weights), list(watch.views), strict=True):
        network = NET.build(data.channels, data.size, data.num_classes)
        network.load_state_dict(weights)
        x = x.detach().requires_grad_()
        total = 0
        for label, members in enumerate(data.by_class):
            one = slice(label, label + 1)
            real = network.embed(views(data.normalised(members)[None], one)).mean(0).detach()
            fake = network.embed(views(x[label * ipc : (label + 1) * ipc][None], one)).mean(0)
            total = total + ((real - fake) ** 2).sum()
        (gradient,) = torch.autograd.grad(total, x)
        velocity = optimizer.momentum * velocity + gradient
        x = x - optimizer.lr * velocity
    return x.detach()


@pytest.mark.parametrize("augment", ["none", "dsa", "crop_rotate_scale"])
def test_pixels_follow_the_gradient_of_the_cards_formula(augment, tiny_images, open_run, monkeypatch):
    data, optimizer = tiny_images(), SGD(lr=0.2, momentum=0.5)
    watch = Watch(monkeypatch)
    with open_run() as run:
        synthetic = DistributionMatching(**FIELDS, steps=4, augment=augment, optimizer=optimizer)(run, data=data)
    expected = by_the_card(watch, data, optimizer, 2)
    assert (expected - watch.starts[0]).abs().max() > 0.05  # it moved
    assert torch.allclose(synthetic.images, expected, atol=1e-5)
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_every_step_has_its_own_network_and_none_is_trained(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    with open_run() as run:
        DistributionMatching(**FIELDS, steps=3)(run, data=tiny_images())
        assert set(run._state) == {"pixels"}  # no other learner
    heads = [weights["head.weight"] for weights in watch.weights]
    assert len(heads) == 3
    assert not any(torch.equal(a, b) for a, b in [(heads[0], heads[1]), (heads[0], heads[2]), (heads[1], heads[2])])


def test_only_the_synthetic_side_carries_a_gradient(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    with open_run(chunk=12) as run:
        DistributionMatching(**FIELDS, steps=1)(run, data=tiny_images())
    assert watch.embedded == [(12, False)] * 3 + [(6, True)]


def test_a_class_has_one_view_for_real_and_synthetic_images_and_the_next_class_another(
    tiny_images, open_run, monkeypatch
):
    watch = Watch(monkeypatch)
    with open_run() as run:
        DistributionMatching(**FIELDS, steps=2, augment="dsa")(run, data=tiny_images())
    real = [state for state, count in watch.applied if count == 12]
    fake = [state for state, count in watch.applied if count == 2]
    assert real == fake
    assert len(real) == 6
    assert len({str(state) for state in real}) > 3  # alike only where two flips or shifts fell out alike


def test_batch_norm_networks_see_all_classes_in_one_forward(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    net = ConvNet(depth=1, width=3, norm="batch")
    with open_run(chunk=1) as run:
        DistributionMatching(ipc=2, net=net, real_batch=12, steps=2)(run, data=tiny_images())
    assert watch.embedded == [(36, False), (6, True)] * 2


def test_batch_norm_does_not_cancel_the_class_means(tiny_images, open_run):
    data, net = tiny_images(), ConvNet(depth=1, width=3, norm="batch")
    for norm_fields in ({"net": net}, {"net": NET}):
        with open_run() as run:
            made = DistributionMatching(ipc=1, real_batch=12, steps=20, augment="none", **norm_fields)(run, data=data)
            start = DistilledSet.from_real(data, 1, run.rng("init")).images
        means = torch.stack([data.normalised(members).mean(0) for members in data.by_class])
        before, after = ((images - means).square().mean() for images in (start, made.images))
        assert after < before


def test_chunks_change_nothing_but_rounding(tiny_images, open_run):
    made = []
    for chunk in (1, 24, 4096):
        with open_run(chunk=chunk) as run:
            made.append(DistributionMatching(**FIELDS, steps=3)(run, data=tiny_images(classes=4)).images)
    assert torch.allclose(made[0], made[1], atol=1e-5)
    assert torch.allclose(made[0], made[2], atol=1e-5)


def test_real_images_change_from_step_to_step(tiny_images, open_run, monkeypatch):
    drawn, data = [], tiny_images()
    draw = type(data).draw
    monkeypatch.setattr(type(data), "draw", lambda *a, **k: (drawn.append(draw(*a, **k)), drawn[-1])[1])
    with open_run() as run:
        DistributionMatching(ipc=1, net=NET, real_batch=4, steps=3)(run, data=data)
    batches = [sorted(indices.flatten().tolist()) for indices in drawn if indices.shape[1] == 4]
    assert len(batches) == 3
    assert batches[0] != batches[1] != batches[2]


def test_defaults_are_the_papers():
    method = DistributionMatching()
    assert (method.ipc, method.steps, method.real_batch, method.augment) == (10, 20_000, 256, "dsa")
    assert method.optimizer == SGD(lr=1.0, momentum=0.5)
    assert method.net == ConvNet(depth=3, width=128)
    assert set(method.presets["small"]) <= {"steps", "real_batch", "net"}  # sizes, no mechanism

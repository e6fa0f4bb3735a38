"""DCC matches one gradient of all classes behind a warm-up that is DC, held against a plain writing of both."""

import pytest
import torch
import torch.nn.functional as F

from attar import nets
from attar.artifacts import DistilledSet
from attar.methods.data import dc, dcc
from attar.methods.data.dc import GradientMatching
from attar.methods.data.dcc import CollectiveMatching, collective_distance
from attar.nets import ConvNet
from attar.run import SGD
from attar.spec import build

NET = ConvNet(depth=1, width=3)
FIELDS = {"ipc": 2, "net": NET, "real_batch": 12}  # twelve a class: every batch is the whole class


def rows_apart(a, b):
    """Return Σ over rows of weights of one minus their cosine."""
    total = torch.zeros(())
    for one, other in zip(a, b, strict=True):
        if one.dim() >= 2:
            for x, y in zip(one.flatten(1), other.flatten(1), strict=True):
                total = total + 1 - (x @ y) / (x.norm() * y.norm() + 1e-6)
    return total


def gradient_of(network, images, labels, **more):
    return torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters()), **more)


def test_pixels_follow_the_cards_algorithm(tiny_images, open_run, monkeypatch):
    data, states, reset = tiny_images(), [], nets.reset

    def watched(module, rng):
        reset(module, rng)
        states.append({name: value.clone() for name, value in module.state_dict().items()})

    monkeypatch.setattr(nets, "reset", watched)
    method = CollectiveMatching(
        **FIELDS, steps=2, updates=2, epochs=15, warmup_networks=0, optimizer=SGD(lr=1.0, momentum=0.5)
    )
    with open_run() as run:
        x = DistilledSet.from_real(data, 2, run.rng("init")).images
        made = method(run, data=data).images
    start, velocity, labels = x, 0, torch.arange(3).repeat_interleave(2)
    for state in states:
        network = NET.build(data.channels, data.size, data.num_classes)
        network.load_state_dict(state)
        for update in range(2):
            x = x.detach().requires_grad_()
            each = [gradient_of(network, data.normalised(m), data.labels[m]) for m in data.by_class]
            real = [sum(parts) / 3 for parts in zip(*each, strict=True)]
            loss = rows_apart(gradient_of(network, x, labels, create_graph=True), real)
            velocity = 0.5 * velocity + torch.autograd.grad(loss, x)[0]
            x = (x - velocity).detach()
            if update == 0:
                optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
                for _ in range(15):
                    optimizer.zero_grad()
                    F.cross_entropy(network(x), labels).backward()
                    optimizer.step()
    assert (x - start).abs().max() > 0.02
    torch.testing.assert_close(made, x, atol=1e-4, rtol=1e-3)


def test_the_distance_is_of_the_whole_sets_gradient_and_its_derivative_is_right(tiny_images):
    data = tiny_images()
    network = nets.fresh(ConvNet(depth=1, width=2), data, torch.Generator().manual_seed(0)).double()
    x = data.normalised(torch.tensor([0, 12, 13, 30])).double().requires_grad_()
    labels = torch.tensor([0, 1, 1, 2])
    names = [name for name, _ in network.named_parameters()]
    real = dict(zip(names, gradient_of(network, data.normalised().double(), data.labels), strict=True))
    found = collective_distance(network, real, x, labels, "rows")
    by_hand = rows_apart(gradient_of(network, x, labels, create_graph=True), list(real.values()))
    torch.testing.assert_close(found, by_hand)
    wanted, given = (torch.autograd.grad(value, x)[0] for value in (by_hand, found))
    torch.testing.assert_close(given, wanted)
    same = dict(zip(names, gradient_of(network, x, labels), strict=True))
    assert collective_distance(network, same, x, labels, "rows").abs() < 1e-3


def test_a_warm_up_of_all_updates_is_dc(tiny_images, open_run):
    made = []
    fields = {**FIELDS, "steps": 2, "updates": 2, "epochs": 2}
    for method in (
        CollectiveMatching(**fields),
        GradientMatching(**fields, init="real"),
        CollectiveMatching(**fields, warmup_networks=0),
    ):
        with open_run() as run:
            made.append(method(run, data=tiny_images()).images)
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"warmup_networks": 2, "warmup_updates": 1}, "c1 c1 11 11"),
        ({"warmup_networks": 1, "warmup_updates": 9}, "cc 11 11 11"),
        ({"warmup_networks": 4, "warmup_updates": 0}, "11 11 11 11"),
        ({"warmup_share": 0.5}, "cc cc 11 11"),  # over the paper's count, which would be all of them
        ({"warmup_share": 0.0}, "11 11 11 11"),
        ({}, "cc cc cc cc"),
    ],
)
def test_the_first_updates_of_the_first_networks_match_class_by_class(
    fields, expected, tiny_images, open_run, monkeypatch
):
    kinds, each, collective = [], dc.class_distances, dcc.collective_distance
    monkeypatch.setattr(dc, "class_distances", lambda *a: (kinds.append("c"), each(*a))[1])
    monkeypatch.setattr(dcc, "collective_distance", lambda *a: (kinds.append("1"), collective(*a))[1])
    with open_run() as run:
        CollectiveMatching(**FIELDS, steps=4, updates=2, epochs=0, **fields)(run, data=tiny_images())
    assert "".join(kinds) == expected.replace(" ", "")


def test_chunks_change_nothing_but_rounding(tiny_images, open_run):
    made = []
    for chunk in (1, 4096):
        with open_run(chunk=chunk) as run:
            method = CollectiveMatching(**FIELDS, steps=2, updates=2, epochs=1, warmup_networks=0, augment="dsa")
            made.append(method(run, data=tiny_images(classes=4)).images)
    assert torch.allclose(made[0], made[1], atol=1e-5)


def test_defaults_are_the_papers():
    method = CollectiveMatching()
    assert (method.warmup_networks, method.warmup_updates, method.warmup_share) == (250, 10, None)
    assert (method.init, method.augment, method.steps) == ("real", "none", 1000)
    found = {ipc: CollectiveMatching(ipc=ipc).path(10 * ipc) for ipc in (1, 10, 50)}
    assert [(updates, training.steps) for updates, training in found.values()] == [(10, 5), (10, 50), (50, 20)]
    assert build(CollectiveMatching, preset="small").warmup_share == 0.25  # the paper's count would be the whole run

"""Transfer: networks learn targets, a probe reads features, and fine-tuning keeps the trunk and renews the head."""

import dataclasses

import pytest
import torch

from attar import nets
from attar.metrics import accuracy
from attar.nets import ConvNet
from attar.run import SGD, Adam, Constant, Cosine
from attar.train.regression import Shape, TargetSource, regression_loss
from attar.train.training import Training, predict
from attar.train.transfer import Transfer, features, finetuned, pretrained, probed

NET = ConvNet(depth=1, width=4, norm="batch")


def stream(name, *counters):
    return torch.Generator().manual_seed(sum(map(ord, name)) + sum(counters))


@pytest.fixture
def data(tiny_images):
    return tiny_images()


@pytest.fixture
def source(data):
    rng = torch.Generator().manual_seed(3)
    return TargetSource(data.normalised(torch.arange(0, 36, 6)), torch.randn(6, 5, generator=rng))


def test_the_loss_is_the_mean_over_all_entries():
    images, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    assert float(regression_loss(torch.nn.Identity(), images, targets)) == (1 + 4 + 16) / 4


def test_pretraining_fits_the_targets_and_gives_as_many_outputs(source, data):
    training = Training(steps=150, optimizer=Adam(lr=0.03))
    network = pretrained(NET, source, data, training, stream)
    assert not network.training
    fresh = nets.fresh(NET, Shape(1, 8, 5), stream("network"))
    errors = [float(regression_loss(x.eval(), source.images, source.labels).detach()) for x in (network, fresh)]
    assert errors[0] < 0.2 * errors[1]


def test_without_a_set_the_network_is_untrained(data):
    network = pretrained(NET, None, data, Training(), stream)
    fresh = nets.fresh(NET, data, stream("network"))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True))


def test_a_probe_finds_what_features_tell_and_nothing_in_shuffled_labels(data):
    network = nets.fresh(NET, data, stream("network")).eval()
    assert probed(network, data, data) == 1.0
    rng = torch.Generator().manual_seed(0)
    shuffled = dataclasses.replace(data, labels=data.labels[torch.randperm(36, generator=rng)])
    assert probed(network, shuffled, data, decay=100.0) < 0.7


def test_a_strong_decay_makes_the_probe_nearly_the_prior(tiny_images):
    data = tiny_images().subset(torch.arange(12, 36))  # twelve each of classes 1 and 2
    train = data.subset(torch.arange(0, 20))  # twelve of class 1, eight of class 2
    network = nets.fresh(NET, data, stream("network")).eval()
    assert probed(network, train, data, decay=1e6) == 0.5
    assert probed(network, train, data, decay=1.0) == 1.0


def test_scaled_and_shifted_features_are_probed_alike(data, monkeypatch):
    network = nets.fresh(NET, data, stream("network")).eval()
    noisy = dataclasses.replace(data, pixels=(data.pixels // 4 + _noise(data)).to(torch.uint8))
    before = probed(network, noisy, data)
    embed = network.embed
    monkeypatch.setattr(network, "embed", lambda x: 1000 * embed(x) - 7)
    assert probed(network, noisy, data) == before


def _noise(data):
    return torch.randint(0, 190, data.pixels.shape, generator=torch.Generator().manual_seed(1))


def test_features_are_those_before_the_head_in_evaluation_mode(data):
    network = nets.fresh(NET, data, stream("network")).train()
    got = features(network, data, chunk=7)
    torch.testing.assert_close(got, network.eval().embed(data.normalised()).detach().double(), atol=1e-5, rtol=1e-5)


def test_fine_tuning_starts_from_the_trunk_and_a_new_head_and_leaves_the_network(source, data):
    network = pretrained(NET, source, data, Training(steps=5, optimizer=SGD(lr=0.1)), stream)
    before = [p.clone() for p in network.parameters()]
    frozen = Training(steps=1, batch=36, optimizer=SGD(lr=0.0))
    got = finetuned(network, NET, data, data, training=frozen, rng=stream)
    twin = nets.fresh(NET, data, stream("head"))
    for mine, theirs in zip((twin.stages, twin.pools), (network.stages, network.pools), strict=True):
        mine.load_state_dict(theirs.state_dict())
    twin.train()(data.normalised())  # the one step moves the batch norms' statistics
    assert got == accuracy(predict(twin, data), data.labels)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))
    assert finetuned(network, NET, data, data, training=Training(steps=60, optimizer=SGD(lr=0.1)), rng=stream) > 0.9


def test_the_defaults_are_krr_sts():
    transfer = Transfer()
    assert transfer.net.widths == (128, 256, 512)
    assert transfer.pretraining.total(1000) == 4000  # 1000 passes
    assert transfer.finetuning.total(1000) == 10_000
    assert (transfer.pretraining.schedule, transfer.finetuning.schedule) == (Constant(), Cosine())

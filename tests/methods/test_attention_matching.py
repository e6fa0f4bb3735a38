"""DataDAM is DM in another space: attention maps of every block but the last, and the embedding, weighed as told."""

import pytest
import torch

from attar import nets
from attar.artifacts import DistilledSet
from attar.errors import RecipeError
from attar.methods.data import dm
from attar.methods.data.datadam import AttentionMatching
from attar.methods.data.dm import DistributionMatching
from attar.nets import ConvNet
from attar.run import SGD
from attar.spec import build

NET = ConvNet(depth=3, width=4, norm="batch")
FIELDS = {"ipc": 2, "net": NET, "real_batch": 12, "augment": "none"}  # twelve a class: every batch is the whole class


def cards_loss(network, real, fake, power, weight):
    """Return the card's loss, written image by image: lists over classes of images `[n, C, H, W]`."""

    def attended(images):
        maps, embedding = network.features(images)
        rows = []
        for one in range(len(images)):
            sums = [sum(channel.abs() ** power for channel in map[one]).flatten() for map in maps]
            rows.append([values / values.norm() for values in sums[:-1]])
        return rows, embedding

    (real_maps, real_e), (fake_maps, fake_e) = attended(torch.cat(real)), attended(torch.cat(fake))
    total, at, bt = 0, 0, 0
    for a, b in zip(map(len, real), map(len, fake), strict=True):
        for block in range(len(real_maps[0])):
            target = sum(rows[block] for rows in real_maps[at : at + a]) / a
            mean = sum(rows[block] for rows in fake_maps[bt : bt + b]) / b
            total = total + ((target.detach() - mean) ** 2).sum()
        gap = real_e[at : at + a].mean(0).detach() - fake_e[bt : bt + b].mean(0)
        total, at, bt = total + weight * (gap**2).sum(), at + a, bt + b
    return 100 * total


@pytest.mark.parametrize(("power", "weight"), [(4.0, 0.01), (1.0, 0.3), (4.0, 0.0)])
def test_pixels_follow_the_gradient_of_the_cards_loss(power, weight, tiny_images, open_run, monkeypatch):
    data, states = tiny_images(), []
    reset = nets.reset

    def watched(module, rng):
        reset(module, rng)
        states.append({name: value.clone() for name, value in module.state_dict().items()})

    monkeypatch.setattr(nets, "reset", watched)
    optimizer = SGD(lr=0.5, momentum=0.5)
    method = AttentionMatching(**FIELDS, steps=2, optimizer=optimizer, power=power, embedding_weight=weight)
    with open_run() as run:
        x = DistilledSet.from_real(data, 2, run.rng("init")).images
        made = method(run, data=data).images
    start, velocity = x, 0
    real = [data.normalised(members) for members in data.by_class]
    for state in list(states):
        network = NET.build(data.channels, data.size, data.num_classes)
        network.load_state_dict(state)
        x = x.detach().requires_grad_()
        loss = cards_loss(network, real, list(x.split(2)), power, weight)
        velocity = 0.5 * velocity + torch.autograd.grad(loss, x)[0]
        x = x - 0.5 * velocity
    assert (x - start).abs().max() > 0.02
    torch.testing.assert_close(made, x.detach(), atol=2e-4, rtol=1e-3)


def test_the_squared_distance_of_its_embedding_is_the_loss(tiny_images):
    data = tiny_images()
    network = nets.fresh(NET, data, torch.Generator().manual_seed(0)).eval()
    real, fake = data.normalised(torch.arange(3)), data.normalised(torch.arange(12, 15))
    for weight in (0.0, 0.01, 0.7):
        embed = AttentionMatching(net=NET, embedding_weight=weight).embedding(network)
        found = (embed(real).mean(0) - embed(fake).mean(0)).square().sum()
        torch.testing.assert_close(found, cards_loss(network, [real], [fake], 4.0, weight))


def test_the_last_block_is_seen_through_the_embedding_alone(tiny_images):
    data = tiny_images()
    network = nets.fresh(NET, data, torch.Generator().manual_seed(0)).eval()
    embed = AttentionMatching(net=NET, embedding_weight=0.0).embedding(network)
    before = embed(data.normalised())
    with torch.no_grad():
        network.stages[-1][0].weight.mul_(-3)
    assert torch.equal(embed(data.normalised()), before)
    assert before.shape[1] == 8 * 8 + 4 * 4 + network.num_features


def test_every_class_goes_through_one_forward_and_real_images_keep_no_graph(tiny_images, open_run, monkeypatch):
    seen, features = [], nets.Network.features

    def watched(network, x):
        maps, out = features(network, x)
        seen.append((len(x), out.requires_grad))
        return maps, out

    monkeypatch.setattr(nets.Network, "features", watched)
    with open_run(chunk=1) as run:
        AttentionMatching(**FIELDS, steps=2)(run, data=tiny_images())
    assert seen == [(36, False), (6, True)] * 2


def test_it_is_dm_in_all_but_the_embedding():
    assert issubclass(AttentionMatching, DistributionMatching)
    assert AttentionMatching.__call__ is DistributionMatching.__call__
    network = dm.nets.fresh(NET, type("Shape", (), {"channels": 1, "size": 8, "num_classes": 2})(), torch.Generator())
    assert DistributionMatching().embedding(network) == network.embed


@pytest.mark.parametrize(
    ("fields", "hint"), [({"net": "mlp"}, "net=convnet"), ({"net.depth": 1}, "net.depth"), ({"power": 0.5}, "power")]
)
def test_networks_without_attention_are_refused(fields, hint):
    with pytest.raises(RecipeError, match=hint):
        build(AttentionMatching, fields, name="datadam")


def test_defaults_are_the_papers():
    method = AttentionMatching()
    assert (method.ipc, method.steps, method.power, method.embedding_weight) == (10, 8000, 4.0, 0.01)
    assert method.optimizer == SGD(lr=1.0, momentum=0.5)
    assert method.net == ConvNet(depth=3, width=128, norm="batch")
    assert (method.augment, method.protocol) == ("dsa", "datadam")
    assert build(AttentionMatching, preset="small").net == ConvNet(depth=2, width=32, norm="batch")

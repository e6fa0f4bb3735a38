"""FYI doubles every synthetic batch by its mirror image, and nothing else: any base runs inside it unchanged."""

import dataclasses

import pytest
import torch

from attar import nets
from attar.artifacts import DistilledSet
from attar.errors import RecipeError
from attar.judging import choose_protocol
from attar.methods.data import dc
from attar.methods.data.datadam import AttentionMatching
from attar.methods.data.dc import GradientMatching
from attar.methods.data.dcc import CollectiveMatching
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.dsa import SiameseAugmentation
from attar.methods.data.fyi import MirroredBatches
from attar.nets import ConvNet
from attar.nets.network import Network
from attar.run import SGD
from attar.spec import build

NET = ConvNet(depth=1, width=3)
FIELDS = {"ipc": 2, "net": NET, "real_batch": 12, "steps": 2}
GRADIENTS = {**FIELDS, "updates": 2, "epochs": 2}
BASES = [
    DistributionMatching(**FIELDS),
    AttentionMatching(**{**FIELDS, "net": ConvNet(depth=2, width=3, norm="batch")}),
    GradientMatching(**GRADIENTS),
    SiameseAugmentation(**GRADIENTS),
    CollectiveMatching(**GRADIENTS, warmup_networks=1),
]


def test_an_image_is_shown_beside_its_mirror_image():
    images = torch.arange(12.0).view(2, 1, 1, 2, 3)  # two classes of one image of two rows
    shown = DistributionMatching(ipc=1, mirror=True).shown(images)
    assert shown.shape == (2, 2, 1, 2, 3)
    assert shown[1, :, 0].tolist() == [[[6, 7, 8], [9, 10, 11]], [[8, 7, 6], [11, 10, 9]]]
    assert DistributionMatching(ipc=1).shown(images) is images


def test_dm_matches_the_mean_over_images_and_mirror_images(tiny_images, open_run, monkeypatch):
    data, states, reset = tiny_images(), [], nets.reset

    def watched(module, rng):
        reset(module, rng)
        states.append({name: value.clone() for name, value in module.state_dict().items()})

    monkeypatch.setattr(nets, "reset", watched)
    base = DistributionMatching(**{**FIELDS, "steps": 1}, augment="none", optimizer=SGD(lr=0.5))
    with open_run() as run:
        x = DistilledSet.from_real(data, 2, run.rng("init")).images.requires_grad_()
        made = MirroredBatches(base=base)(run, data=data).images
    network = NET.build(data.channels, data.size, data.num_classes)
    network.load_state_dict(states[0])
    total = 0
    for members, mine in zip(data.by_class, x.split(2), strict=True):
        mirrored = torch.stack([image.flip(2) for image in mine])
        mean = (network.embed(mine) + network.embed(mirrored)).sum(0) / 4
        total = total + ((network.embed(data.normalised(members)).mean(0).detach() - mean) ** 2).sum()
    expected = x - 0.5 * torch.autograd.grad(total, x)[0]
    torch.testing.assert_close(made, expected.detach(), atol=1e-5, rtol=1e-4)
    assert (expected - x).abs().max() > 0.02


def test_real_images_are_not_doubled(tiny_images, open_run, monkeypatch):
    seen, embed = [], Network.embed

    def watched(module, x):
        out = embed(module, x)
        seen.append((len(x), out.requires_grad))
        return out

    monkeypatch.setattr(Network, "embed", watched)
    with open_run(chunk=12) as run:
        MirroredBatches(base=DistributionMatching(**{**FIELDS, "steps": 1}))(run, data=tiny_images())
    assert seen == [(12, False)] * 3 + [(12, True)]


def test_dc_matches_and_trains_on_both(tiny_images, open_run, monkeypatch):
    matched, trained, distances, fit = [], [], dc.class_distances, dc.fit

    def watched_distances(network, real, images, labels, kind):
        matched.append((images, labels))
        return distances(network, real, images, labels, kind)

    def watched_fit(network, source, training, rng):
        trained.append((source, training))
        return fit(network, source, training, rng)

    monkeypatch.setattr(dc, "class_distances", watched_distances)
    monkeypatch.setattr(dc, "fit", watched_fit)
    with open_run() as run:
        MirroredBatches(base=GradientMatching(**{**GRADIENTS, "steps": 1}))(run, data=tiny_images())
    images, labels = matched[0]
    assert images.shape == (3, 4, 1, 8, 8)
    assert labels.tolist() == [0, 1, 2]
    assert torch.equal(images[:, 2:], images[:, :2].flip(4))
    (source, training), *_ = trained
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert torch.equal(source.images[6:], source.images[:6].flip(3))
    assert training.steps == 2
    many = GradientMatching(ipc=100, updates=2, epochs=1, mirror=True)
    assert many.path(10 * many.shown_ipc)[1].steps == 8  # of 256 out of 2000


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
def test_it_is_the_base_with_mirrored_batches_and_flips_out_of_the_choice(base, tiny_images, open_run):
    augment = {"dsa": "dsa-always-flip", "none": "none"}[base.augment]
    alike = dataclasses.replace(base, mirror=True, augment=augment)
    unmirrored = dataclasses.replace(alike, mirror=False)
    made = []
    for method in (MirroredBatches(base=base), alike, unmirrored):
        with open_run() as run:
            made.append(method(run, data=tiny_images()))
    assert torch.equal(made[0].images, made[1].images)
    assert made[0].images.shape == (6, 1, 8, 8)  # as many images are stored
    assert not torch.allclose(made[0].images, made[2].images, atol=1e-4)


def test_flips_stay_in_the_choice_where_asked(tiny_images, open_run):
    base, made = BASES[0], []
    for method in (MirroredBatches(base=base, always_flip=False), dataclasses.replace(base, mirror=True)):
        with open_run() as run:
            made.append(method(run, data=tiny_images()).images)
    assert torch.equal(*made)


def test_mirrored_sets_are_judged_with_flips(tiny_images, open_run):
    with open_run() as run:
        made = MirroredBatches(base=BASES[0])(run, data=tiny_images())
    recipe = {"fields": {"base": {"kind": "dm", "net": {"kind": "convnet", "depth": 1, "width": 3}}}}
    chosen = {name: choose_protocol(None, {**recipe, "preset": name}, made, {}) for name in ("small", "paper")}
    assert chosen["small"].training.augment == "flip"
    assert chosen["paper"].training.augment == "dsa-always-flip"
    assert {protocol.net for protocol in chosen.values()} == {NET}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base": "random"}, "no synthetic batches to mirror; take dm"),
        ({"base": "dmm"}, "unknown method 'dmm'; did you mean 'dm'"),
        ({"base.ippc": 3}, "'dm' has no field 'ippc'; did you mean 'ipc'"),
        ({"base.ipc": 0}, "field 'ipc' of 'dm'"),
        ({"base.version": 99}, "version 99 was asked for"),
        ({"base": 7}, "named by its id"),
    ],
)
def test_other_bases_and_wrong_fields_are_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        build(MirroredBatches, fields, preset="small", name="fyi")

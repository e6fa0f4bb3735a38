"""FYI doubles every synthetic batch by its mirror image, and nothing else: any base runs inside it unchanged."""

import dataclasses

import pytest
import torch

from attar import nets
from attar.artifacts import DistilledSet
from attar.data import augmentation
from attar.errors import RecipeError
from attar.judging import choose_protocol
from attar.methods.data import dc, mtt
from attar.methods.data.datadam import AttentionMatching
from attar.methods.data.datm import DifficultyAligned
from attar.methods.data.dc import GradientMatching
from attar.methods.data.dcc import CollectiveMatching
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.dsa import SiameseAugmentation
from attar.methods.data.fyi import MirroredBatches
from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.trajectory.experts import ExpertRecipe, RecordExperts
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.matching import Batch, Student, Synthetic, Waypoint, match_segment
from attar.methods.data.trajectory.segments import Window, walk
from attar.nets import ConvNet
from attar.nets.network import Network
from attar.run import SGD
from attar.spec import build

NET = ConvNet(depth=1, width=3)
FIELDS = {"ipc": 2, "net": NET, "real_batch": 12, "steps": 2}
GRADIENTS = {**FIELDS, "updates": 2, "epochs": 2}
TRAJECTORIES = {
    "ipc": 2,
    "steps": 2,
    "student_steps": 3,
    "expert_epochs": 1,
    "window": Window(stop=2),
    "step_size": 0.05,
    "net": NET,
    "experts": ExpertRecipe(count=1, epochs=2, batch=12, augment="none"),
}
BASES = [
    DistributionMatching(**FIELDS),
    AttentionMatching(**{**FIELDS, "net": ConvNet(depth=2, width=3, norm="batch")}),
    GradientMatching(**GRADIENTS),
    SiameseAugmentation(**GRADIENTS),
    CollectiveMatching(**GRADIENTS, warmup_networks=1),
    TrajectoryMatching(**TRAJECTORIES),
    DifficultyAligned(**TRAJECTORIES, init="real", threshold=None),
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

    def watched_fit(network, source, training, rng, *more):
        trained.append((source, training))
        return fit(network, source, training, rng, *more)

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


def segment(images, batches, soft=False):
    """Return what a segment of a fixed student on these batches gives in float64."""
    rng = torch.Generator().manual_seed(5)
    network = FlatNetwork(NET, type("Shape", (), {"channels": 1, "size": 8, "num_classes": 3}))
    start = network.fresh(rng).double()
    goal = Waypoint(len(batches), start + 0.05 * torch.randn(len(start), generator=rng, dtype=torch.float64))
    labels = torch.arange(len(images)) % 3
    labels = torch.eye(3, dtype=torch.float64)[labels] if soft else labels
    student = Student(network, torch.tensor(0.1, dtype=torch.float64), momentum=0.5)
    return match_segment(student, start, [goal], batches, Synthetic(images, labels))


def order(count, *, batch, steps=4, augment="none", mirror=True):
    rng = torch.Generator().manual_seed(2)
    return walk(count, batch, steps, augment, (1, 8, 8), order=3, rng=rng, mirror=mirror)


def test_half_of_a_trajectorys_batch_is_the_mirror_images_of_the_other_half():
    images = torch.randn(9, 1, 8, 8)
    for batch, half in ((6, 3), (5, 2), (None, 4), (1, 1)):
        for one, plain in zip(order(9, batch=batch), order(9, batch=half, mirror=False), strict=True):
            count = len(plain.indices)
            assert torch.equal(one.indices, torch.cat([plain.indices, plain.indices]))
            shown = one.view(images[one.indices])
            assert torch.equal(shown[:count], images[plain.indices])
            assert torch.equal(shown[count:], images[plain.indices].flip(3))


def test_a_trajectorys_images_are_mirrored_before_they_are_augmented():
    images = torch.randn(6, 1, 8, 8)
    rng = torch.Generator().manual_seed(2)
    for one in order(6, batch=6, augment="dsa"):
        view = augmentation("dsa").draw(6, (1, 8, 8), rng)
        x = images[one.indices[:3]]
        assert torch.equal(one.view(images[one.indices]), view(torch.cat([x, x.flip(3)])))


def test_a_mirror_images_gradient_comes_back_mirrored():
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batches = order(6, batch=6)
    free = [
        Batch(torch.cat([b.indices[:3], 6 + b.indices[:3]])) for b in batches
    ]  # mirror images as images of their own
    got, both = segment(images, batches), segment(torch.cat([images, images.flip(3)]), free)
    torch.testing.assert_close(got.images, both.images[:6] + both.images[6:].flip(3))
    assert got.loss.item() == pytest.approx(both.loss.item(), rel=1e-12)
    assert (got.images - both.images[:6]).norm() > 0.3 * got.images.norm()
    soft = segment(images, batches, soft=True)
    assert soft.labels.shape == (6, 3)


def test_images_that_are_their_own_mirror_images_lose_nothing_but_half_the_batch():
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = images + images.flip(3)
    got, plain = segment(images, order(6, batch=6)), segment(images, order(6, batch=3, mirror=False))
    torch.testing.assert_close(got.end, plain.end)
    torch.testing.assert_close(got.images, (plain.images + plain.images.flip(3)) / 2)


def test_a_base_on_trajectories_flips_always_and_so_do_its_experts(tiny_images, open_run, monkeypatch):
    seen, data = [], tiny_images()
    recipe = ExpertRecipe(count=1, epochs=2, batch=12)
    base = TrajectoryMatching(**{**TRAJECTORIES, "experts": recipe})
    assert {MirroredBatches(base=base).mirrored().augment, MirroredBatches(base=base).mirrored().experts.augment} == {
        "dsa-always-flip"
    }
    kept = MirroredBatches(base=base, always_flip=False).mirrored()
    assert (kept.mirror, kept.augment, kept.experts) == (True, "dsa", recipe)
    monkeypatch.setattr(
        mtt, "match_segment", lambda *given, **more: seen.append(given) or match_segment(*given, **more)
    )
    with open_run() as run:
        experts = run.stage("experts", RecordExperts(net=NET, recipe=recipe), data=data)
        made = MirroredBatches(base=base)(run, data=data, trajectories=experts)
    assert [len(batch.indices) for batch in seen[0][3]] == [6] * 3
    assert any(torch.equal(seen[0][1], point) for point in experts.experts[0])
    assert (made.hints["protocol"], made.hints["mirrored"]) == ("mtt", True)
    assert made.hints["student_lr"] > 0
    with open_run() as run, pytest.raises(RecipeError, match="such as mtt; leave them out"):
        MirroredBatches(base=BASES[0])(run, data=data, trajectories=experts)


def test_a_killed_run_on_trajectories_ends_with_the_same_set(tiny_images, open_run, monkeypatch):
    data, calls = tiny_images(), []
    method = MirroredBatches(base=DifficultyAligned(**{**TRAJECTORIES, "steps": 4}, init="real", threshold=None))
    with open_run() as run:
        whole = method(run, data=data)
    run = open_run()
    run.checkpoint_seconds = 0

    def dies(*given, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return match_segment(*given, **more)

    monkeypatch.setattr(mtt, "match_segment", dies)
    with pytest.raises(KeyboardInterrupt), run:
        method(run, data=data)
    with type(run)(run.folder, plan=run.plan) as again:
        made = method(again, data=data)
    assert made.fingerprint == whole.fingerprint
    assert made.hints == whole.hints
    assert len(calls) == 5  # two, the kill, and the last two


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


@pytest.mark.parametrize(
    ("base", "paper"),
    [
        (BASES[0], (1000, "dsa-always-flip", 256)),
        (BASES[1], (1800, "dsa-always-flip", 64)),
        (BASES[2], (300, "flip", 256)),
        (BASES[6], (1000, "dsa-always-flip", 128)),
    ],
    ids=lambda given: type(given).__name__,
)
def test_mirrored_sets_are_judged_as_their_bases_but_with_flips(base, paper, tiny_images, open_run):
    with open_run() as run:
        made = MirroredBatches(base=base)(run, data=tiny_images())
    recipe = {"fields": {"base": {"net": {"kind": "convnet", "depth": 1, "width": 3}}}}
    chosen = {name: choose_protocol(None, {**recipe, "preset": name}, made, {}) for name in ("small", "paper")}
    assert chosen["small"].training.augment == "flip"
    training = chosen["paper"].training
    assert (training.epochs, training.augment, training.batch) == paper
    assert {protocol.net for protocol in chosen.values()} == {NET}
    named = choose_protocol("dsa", recipe, made, {})
    assert (named.training.epochs, named.training.augment) == (1000, "dsa")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base": "random"}, "no synthetic batches to mirror; take dm.*or datm"),
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

"""KIP, FRePo and KRR-ST: a step by hand with a dense inverse, what they start from, and what is learned."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional

from attar import nets
from attar.artifacts import Student
from attar.artifacts.targeted import TargetedSet
from attar.data import augmentation
from attar.errors import AttarError, DataError
from attar.losses.kernels import convolutional_ntk, feature_kernel, fully_connected_ntk
from attar.losses.redundancy import barlow_twins
from attar.losses.ridge import centred_one_hot
from attar.methods.data import frepo, krr_st
from attar.methods.data.frepo import FeatureRegression
from attar.methods.data.kip import KernelInducingPoints
from attar.methods.data.krr_st import SelfSupervisedTransfer
from attar.methods.data.ridge.kernels import Convolutional, FullyConnected, ridge_accuracy
from attar.methods.data.ridge.pool import ModelPool, Pool
from attar.methods.data.ridge.teacher import SelfSupervision, varied
from attar.nets import ConvNet
from attar.run import SGD, Adam
from attar.run.run import Run
from attar.spec import build
from attar.train.regression import Shape
from attar.train.training import Order, Training

NET = ConvNet(depth=1, width=4, norm="batch")
ONE = Pool(size=1, max_age=1, optimizer=SGD(lr=0.1))
RIDGE = 0.1  # large enough to tell how it is scaled, and what flows through the scale
FREPO = {"ipc": 2, "steps": 1, "real_batch": 9, "net": NET, "pool": ONE, "optimizer": SGD(lr=0.5)}
TEACHING = SelfSupervision(
    net=NET, dimensions=5, projector=8, training=Training(steps=4, batch=12, optimizer=Adam(lr=0.01))
)
KRR = {**FREPO, "images": 6, "regularisation": RIDGE, "augment": "none", "teaching": TEACHING}
del KRR["ipc"]


@pytest.fixture
def data(tiny_images):
    return tiny_images()


def distil(open_run, method, data, **inputs):
    with open_run() as run:
        return method(run, data=data, **inputs)


def predicted(support, cross, targets, ridge):
    """Ridge regression with a dense inverse."""
    return cross @ torch.linalg.inv(support + ridge * torch.eye(len(support))) @ targets


def real_batch(run, data, steps, batch, step=0):
    return Order(data, Training(steps=steps, batch=batch), run.rng).batch(step)


def moved(tensors, loss, lr=0.5):
    """Where one step of gradient descent takes some tensors."""
    return [x.detach() - lr * g for x, g in zip(tensors, torch.autograd.grad(loss, tensors), strict=True)]


class Spy:
    """What learners a run registers, by name, with their optimizers' schedules."""

    def __init__(self, monkeypatch):
        self.given = {}
        learner = Run.learner

        def spied(run, name, target, optimizer, **options):
            self.given[name] = options
            return learner(run, name, target, optimizer, **options)

        monkeypatch.setattr(Run, "learner", spied)


# ------------------------------------------------------------------ KIP


def test_a_step_of_kip_by_hand(open_run, data):
    method = KernelInducingPoints(
        ipc=2,
        steps=1,
        real_batch=9,
        kernel=FullyConnected(depth=2),
        optimizer=SGD(lr=0.5),
        regularisation=RIDGE,
        learn_labels=True,
    )
    made = distil(open_run, method, data)
    with open_run() as run:
        indices = data.draw(2, run.rng("init")).flatten()
        images, targets = data.normalised(indices).double(), centred_one_hot(data.labels[indices], 3).double()
        real, labels = real_batch(run, data, 1, 9)
    images.requires_grad_(), targets.requires_grad_()
    support = fully_connected_ntk(images, images, depth=2)
    cross = fully_connected_ntk(real, images, depth=2)
    told = predicted(support, cross, targets, RIDGE * support.trace() / 6)
    loss = 0.5 * (told - centred_one_hot(labels, 3)).square().sum() / 9
    expected = moved([images, targets], loss)
    torch.testing.assert_close(made.images, expected[0].float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.targets, expected[1].float(), atol=1e-5, rtol=1e-4)
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_kips_labels_stay_unless_they_are_learned_or_solved(open_run, data):
    fields = {"ipc": 1, "steps": 2, "real_batch": 9, "kernel": FullyConnected(depth=1), "regularisation": RIDGE}
    fixed, learned, solved = (
        distil(open_run, KernelInducingPoints(**fields, **more), data)
        for more in ({}, {"learn_labels": True}, {"solve_labels": True})
    )
    assert torch.equal(fixed.targets, centred_one_hot(torch.arange(3), 3))
    assert not torch.equal(learned.targets, fixed.targets)
    assert torch.equal(solved.images, fixed.images)

    def error(made):
        kernel = fully_connected_ntk(made.images, made.images, depth=1)
        cross = fully_connected_ntk(data.normalised(), made.images, depth=1)
        told = predicted(kernel, cross, made.targets.double(), RIDGE * kernel.trace() / 3)
        return float((told - centred_one_hot(data.labels, 3)).square().mean())

    assert error(solved) < error(fixed)
    for seed in range(5):
        noise = 1e-2 * torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
        assert error(solved) < error(TargetedSet.of(solved, solved.targets + noise))


def test_label_solve_alone_leaves_the_real_images(open_run, data):
    method = KernelInducingPoints(ipc=2, steps=0, solve_labels=True, real_batch=7, kernel=FullyConnected())
    made = distil(open_run, method, data)
    with open_run() as run:
        assert torch.equal(made.images, data.normalised(data.draw(2, run.rng("init")).flatten()))


def test_kip_learns_images_that_predict_more(open_run, tiny_images):
    train, test = tiny_images(each=20), tiny_images(each=20)
    noisy = [dataclasses.replace(x, pixels=_noisy(x.pixels, seed)) for seed, x in enumerate((train, test))]
    kernel = FullyConnected(depth=2)
    start, made = (
        distil(open_run, KernelInducingPoints(ipc=1, steps=steps, real_batch=30, kernel=kernel), noisy[0])
        for steps in (0, 60)
    )
    assert ridge_accuracy(kernel, made, noisy[1]) > ridge_accuracy(kernel, start, noisy[1]) + 0.1


def _noisy(pixels, seed):
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return (0.4 * pixels.float() + 150 * noise).clamp(0, 255).to(torch.uint8)


def test_the_convolutional_kernel_is_the_same_in_pieces(data):
    a, b = data.normalised(torch.arange(5)), data.normalised(torch.arange(20, 23)).requires_grad_()
    whole = convolutional_ntk(a, b, depth=2)
    (wanted,) = torch.autograd.grad(whole.square().sum(), b)
    for chunk in (1, 2, 4, 64):
        pieces = Convolutional(depth=2, chunk=chunk)(a, b)
        (gradient,) = torch.autograd.grad(pieces.square().sum(), b)
        torch.testing.assert_close(pieces, whole)
        torch.testing.assert_close(gradient, wanted)


def test_kip_runs_with_the_kernel_of_its_paper(open_run, tiny_images):
    method = KernelInducingPoints(ipc=1, steps=1, real_batch=4)
    made = distil(open_run, method, tiny_images(classes=2, channels=3))
    assert torch.isfinite(made.images).all()
    assert method.kernel == Convolutional()


# ------------------------------------------------------------------ FRePo


@pytest.mark.parametrize("mirror", [False, True])
def test_a_step_of_frepo_by_hand(open_run, data, mirror):
    made = distil(open_run, FeatureRegression(**FREPO, regularisation=RIDGE, mirror=mirror), data)
    with open_run() as run:
        indices = data.draw(2, run.rng("init")).flatten()
        images = data.normalised(indices).requires_grad_()
        targets = (centred_one_hot(data.labels[indices], 3) / 0.3**0.5).requires_grad_()
        network = nets.fresh(NET, data, run.rng("pool network", 0)).eval()
        real, labels = real_batch(run, data, 1, 9)
    shown = torch.cat([images, images.flip(3)]) if mirror else images
    features, others = network.embed(shown).double(), network.embed(real).double()
    support = features @ features.T
    own = torch.cat([targets, targets]) if mirror else targets
    told = predicted(support, others @ features.T, own.double(), RIDGE * support.trace() / len(support))
    loss = 0.5 * (told - centred_one_hot(labels, 3)).square().sum() / 9
    first, second = targets.topk(2, dim=1).values.unbind(1)
    loss = loss - (first - second).clamp_max(1 / 3).mean()
    expected = moved([images, targets], loss)
    torch.testing.assert_close(made.images, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.targets, expected[1], atol=1e-5, rtol=1e-4)


def test_frepos_labels_start_centred_and_smaller_with_more_classes(open_run, data):
    made = distil(open_run, FeatureRegression(**{**FREPO, "optimizer": SGD(lr=0.0)}), data)
    expected = centred_one_hot(made.labels, 3) / 0.3**0.5
    torch.testing.assert_close(made.targets, expected)


def test_the_margin_of_the_labels_is_a_term_of_the_loss(open_run, data, monkeypatch):
    """At the start all margins are wide, so the term moves nothing; here it is one that does."""
    plain = distil(open_run, FeatureRegression(**FREPO), data)
    monkeypatch.setattr(frepo, "label_margin", lambda targets: 3 * targets.sum())
    pushed = distil(open_run, FeatureRegression(**FREPO), data)
    torch.testing.assert_close(pushed.targets, plain.targets - 0.5 * 3)
    torch.testing.assert_close(pushed.images, plain.images)


def test_frepos_pool_starts_at_spread_ages_and_learns_the_set_at_every_visit(open_run, data, monkeypatch):
    pools, ages = [], []
    age, visit = ModelPool.age, ModelPool.visit

    def aged(pool, given, *rest):
        pools.append(pool)
        age(pool, given, *rest)
        ages.append(pool.ages)

    def visited(pool, *rest):
        visit(pool, *rest)
        ages.append(pool.ages)

    monkeypatch.setattr(ModelPool, "age", aged)
    monkeypatch.setattr(ModelPool, "visit", visited)
    distil(open_run, FeatureRegression(**{**FREPO, "steps": 6, "pool": Pool(size=4, max_age=20)}), data)
    assert ages[0] == [0, 5, 10, 15]
    assert [sum(now) - sum(before) for before, now in itertools.pairwise(ages)] == [1] * 6
    assert sum(now != before for now, before in zip(ages[-1], ages[0], strict=True)) > 1  # more than one is visited


@pytest.mark.parametrize(("method", "oldest"), [(FeatureRegression(**FREPO), 3), (SelfSupervisedTransfer(**KRR), 2)])
def test_frepos_networks_exceed_the_oldest_age_and_krr_sts_reach_it(open_run, data, monkeypatch, method, oldest):
    ages = []
    visit = ModelPool.visit
    monkeypatch.setattr(ModelPool, "visit", lambda pool, *rest: (visit(pool, *rest), ages.append(pool.ages[0])))
    pool = Pool(size=1, max_age=2, optimizer=SGD(lr=0.01))
    distil(open_run, dataclasses.replace(method, steps=9, pool=pool), data)
    assert set(ages) == set(range(oldest + 1))


def test_a_network_sees_the_set_as_it_was_just_moved(open_run, data, monkeypatch):
    seen = []
    visit = ModelPool.visit
    monkeypatch.setattr(
        frepo.ModelPool, "visit", lambda pool, k, x, y: (seen.append(x.detach().clone()), visit(pool, k, x, y))
    )
    made = distil(open_run, FeatureRegression(**{**FREPO, "steps": 3}), data)
    assert torch.equal(seen[-1], made.images)
    assert not torch.equal(seen[0], seen[-1])


def test_learning_rates_fall_as_in_the_papers(open_run, data, monkeypatch):
    spy = Spy(monkeypatch)
    distil(open_run, FeatureRegression(**FREPO), data)
    assert (spy.given["support"]["schedule"].kind, spy.given["support"]["schedule"].final) == ("cosine", 0.1)
    assert spy.given["support"]["steps"] == 1
    distil(open_run, SelfSupervisedTransfer(**KRR, clip=0.5), data)
    for name in ("images", "targets"):
        assert (spy.given[name]["schedule"].kind, spy.given[name]["schedule"].final) == ("linear", 1e-3)
        assert spy.given[name]["clip"] == 0.5


def test_frepo_learns_a_set_that_predicts_more_with_a_fresh_network(open_run, tiny_images):
    train, test = (dataclasses.replace(x, pixels=_noisy(x.pixels, k)) for k, x in enumerate([tiny_images(each=20)] * 2))
    fields = {**FREPO, "ipc": 1, "real_batch": 30, "optimizer": Adam(lr=0.03), "pool": Pool(size=3, max_age=10)}
    network = nets.fresh(NET, train, torch.Generator().manual_seed(4)).eval()

    def scored(steps):
        made = distil(open_run, FeatureRegression(**{**fields, "steps": steps}), train)
        return ridge_accuracy(lambda a, b: feature_kernel(network.embed(a), network.embed(b)), made, test)

    assert scored(60) > scored(1) + 0.1


# ------------------------------------------------------------------ KRR-ST


@pytest.fixture
def teacher(data):
    shape = Shape(1, 8, 5)
    network = nets.fresh(NET, shape, torch.Generator().manual_seed(11)).eval()
    return Student(network, NET, 1, 8, tuple("abcde"))


def test_a_step_of_krr_st_by_hand(open_run, data, teacher):
    fields = {**KRR, "pool": Pool(**_plain(ONE)), "optimizer": SGD(lr=100.0)}
    made = distil(open_run, SelfSupervisedTransfer(**fields), data, teacher=teacher)
    with open_run() as run:
        indices = torch.randperm(36, generator=run.rng("init"))[:6]
        images = data.normalised(indices).requires_grad_()
        targets = teacher.module(images).detach().requires_grad_()
        network = nets.fresh(NET, Shape(1, 8, 5), run.rng("pool network", 0))
        functional.mse_loss(network.train()(images), targets).backward()  # its age is drawn from 1 to the oldest, 1
        for p in network.parameters():
            p.data -= 0.1 * p.grad
        network.eval()
        real, _ = real_batch(run, data, 1, 9)
    features, others = (
        torch.cat([network.embed(x).double(), torch.ones(len(x), 1)], 1) for x in (images, real)
    )  # a constant feature
    support = features @ features.T
    told = predicted(support, others.detach() @ features.T, targets.double(), RIDGE * support.trace().detach())
    loss = (told - teacher.module(real).double().detach()).square().mean()
    expected = moved([images, targets], loss, lr=100.0)
    torch.testing.assert_close(made.images, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.targets, expected[1], atol=1e-5, rtol=1e-4)


def _plain(pool):
    return {"size": pool.size, "max_age": pool.max_age, "optimizer": pool.optimizer, "batch": None}


def test_krr_st_starts_from_real_images_with_what_the_teacher_says_of_them(open_run, data, teacher):
    made = distil(open_run, SelfSupervisedTransfer(**{**KRR, "optimizer": SGD(lr=0.0)}), data, teacher=teacher)
    real = data.normalised()
    assert all((real == image).flatten(1).all(1).any() for image in made.images)
    torch.testing.assert_close(made.targets, teacher.module(made.images).detach())
    assert made.classes == ("unlabelled",)
    assert not made.labelled


def test_gradients_of_images_and_of_targets_are_clipped_apart(open_run, data, teacher):
    start, made = (
        distil(
            open_run, SelfSupervisedTransfer(**{**KRR, "optimizer": SGD(lr=lr), "clip": 1e-6}), data, teacher=teacher
        )
        for lr in (0.0, 1e6)
    )
    for before, after in ((start.images, made.images), (start.targets, made.targets)):
        assert float((after - before).norm()) == pytest.approx(1.0, rel=0.01)


def test_labels_play_no_part(open_run, data):
    shuffled = dataclasses.replace(data, labels=data.labels.flip(0))
    first, second = (distil(open_run, SelfSupervisedTransfer(**KRR), images) for images in (data, shuffled))
    assert first.fingerprint == second.fingerprint


def test_teacher_and_network_see_the_same_augmented_view(open_run, data, teacher, monkeypatch):
    seen = []
    mismatch = SelfSupervisedTransfer.mismatch

    def watched(method, network, known, real, *learned):
        seen.append(real)
        return mismatch(method, network, known, real, *learned)

    monkeypatch.setattr(krr_st.SelfSupervisedTransfer, "mismatch", watched)
    distil(open_run, SelfSupervisedTransfer(**{**KRR, "augment": "crop-and-flip"}), data, teacher=teacher)
    with open_run() as run:
        plain, _ = real_batch(run, data, 1, 9)
        view = augmentation("crop-and-flip").draw(9, plain.shape[1:], _rng_in(run, "match", "augment"))
    torch.testing.assert_close(seen[0], view(plain))
    assert not torch.equal(seen[0], plain)


def _rng_in(run, loop, name):
    for step in run.loop(loop, 1):
        rng = run.rng(name, step)
    return rng


def test_krr_sts_pool_starts_at_drawn_ages(open_run, data, teacher, monkeypatch):
    given = []
    age = ModelPool.age
    monkeypatch.setattr(ModelPool, "age", lambda pool, ages, *rest: (given.append(ages), age(pool, ages, *rest)))
    pool = Pool(size=6, max_age=4, optimizer=SGD(lr=0.01), batch=None)
    distil(open_run, SelfSupervisedTransfer(**{**KRR, "pool": pool}), data, teacher=teacher)
    assert set(given[0]) <= {1, 2, 3, 4}
    assert len(set(given[0])) > 1


def test_predictions_of_unseen_features_come_nearer(open_run, tiny_images, teacher):
    """The card's second measure: the error of the ridge prediction falls on images that were not distilled."""
    train, other = (
        dataclasses.replace(x, pixels=_noisy(x.pixels, k)) for k, x in enumerate([tiny_images(each=20)] * 2)
    )
    network = nets.fresh(NET, Shape(1, 8, 5), torch.Generator().manual_seed(4)).eval()
    errors = []
    for steps in (1, 10, 40, 160):
        fields = {**KRR, "steps": steps, "real_batch": 30, "optimizer": Adam(lr=0.03), "regularisation": 1e-6}
        made = distil(open_run, SelfSupervisedTransfer(**fields), train, teacher=teacher)
        error = SelfSupervisedTransfer(**fields).mismatch(
            network, teacher.module, other.normalised(), made.images, made.targets
        )
        errors.append(float(error.detach()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_what_krr_st_refuses(open_run, data, teacher, tiny_images, tmp_path):
    with open_run() as run, pytest.raises(DataError, match="40 images start as real ones, and memory has 36"):
        SelfSupervisedTransfer(**{**KRR, "images": 40})(run, data=data)
    with open_run() as run, pytest.raises(DataError, match="reads 1×8×8 images, memory has 1×10×10"):
        SelfSupervisedTransfer(**KRR)(run, data=tiny_images(size=10), teacher=teacher)
    made = distil(open_run, FeatureRegression(**FREPO), data)
    folder = made.save(tmp_path / "set")
    with open_run() as run, pytest.raises(AttarError, match="takes a trained network; got a targeted-set"):
        SelfSupervisedTransfer(**KRR)(run, data=data, teacher=str(folder))


def test_a_teacher_in_a_folder_is_read(open_run, data, teacher, tmp_path):
    folder = teacher.save(tmp_path / "teacher")
    first, second = (distil(open_run, SelfSupervisedTransfer(**KRR), data, teacher=t) for t in (teacher, str(folder)))
    assert first.fingerprint == second.fingerprint


# ------------------------------------------------------------------ its teacher


def test_features_of_two_views_agree_more_after_training_and_are_standardised(open_run, tiny_images):
    data = tiny_images(each=30)
    made = [
        distil(
            open_run,
            dataclasses.replace(
                TEACHING, views="color_flip", training=Training(steps=steps, batch=45, optimizer=Adam(lr=0.01))
            ),
            data,
        )
        for steps in (1, 200)
    ]
    views = [varied(data.normalised(), ("color", "flip"), torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    before, after = (float(barlow_twins(*(student.module(view).detach() for view in views))) for student in made)
    assert after < 0.8 * before
    told = made[1].module(data.normalised()).detach()
    torch.testing.assert_close(told.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(told.std(0), torch.ones(5), atol=1e-3, rtol=0)
    assert made[1].module.head.out_features == 5


def test_every_operation_of_the_views_is_applied(data):
    x = data.normalised()
    rng = torch.Generator().manual_seed(0)
    got = varied(x, ("flip", "crop"), rng)
    rng.manual_seed(0)
    flipped = augmentation("flip").draw(36, x.shape[1:], rng)(x)
    assert torch.equal(got, augmentation("crop").draw(36, x.shape[1:], rng)(flipped))


# ------------------------------------------------------------------ presets

SHRUNK = {"steps": 2, "real_batch": 5, "net.width": 2}
OF_KRR = {
    "images": 5,
    "pool.max_age": 2,
    "teaching.dimensions": 3,
    "teaching.training.steps": 2,
    "teaching.projector": 4,
}


@pytest.mark.parametrize(
    ("cls", "preset", "more"),
    [
        (FeatureRegression, "paper", {"ipc": 1, "pool.max_age": 4}),
        (FeatureRegression, "cifar", {"ipc": 1, "pool.max_age": 4}),
        (SelfSupervisedTransfer, "paper", {**OF_KRR, "teaching.net.width": 2}),
        (SelfSupervisedTransfer, "tiny-imagenet", {**OF_KRR, "teaching.net.width": 2}),
        (SelfSupervisedTransfer, "imagenet-64", {**OF_KRR, "teaching.net.width": 2}),
    ],
)
def test_the_papers_settings_run_with_only_their_sizes_shrunk(open_run, tiny_images, cls, preset, more):
    data = tiny_images(classes=2, channels=3, size=64 if "imagenet" in preset else 32, each=6)
    made = distil(open_run, build(cls, {**SHRUNK, **more}, preset=preset), data)
    assert torch.isfinite(made.images).all()
    assert torch.isfinite(made.targets).all()


@pytest.mark.parametrize(
    ("preset", "mirror"), [("paper", False), ("cifar", True), ("cifar-100", False), ("fashion-mnist", False)]
)
def test_mirror_images_are_support_where_the_paper_has_them(preset, mirror):
    assert build(FeatureRegression, preset=preset).mirror is mirror


def test_the_networks_of_the_papers_double_their_channels():
    assert FeatureRegression().net.widths == (128, 256, 512)
    assert build(SelfSupervisedTransfer, preset="tiny-imagenet").net.widths == (64, 128, 256, 512)
    assert SelfSupervisedTransfer().net.norm == FeatureRegression().net.norm == "batch"

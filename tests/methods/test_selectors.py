"""Selectors choose what their formula says: random, herding, k-center, and the features they share."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from attar.errors import DataError, RecipeError
from attar.methods.data.features import embedding
from attar.methods.data.herding import Herding, herd
from attar.methods.data.kcenter import KCenterGreedy, k_center
from attar.methods.data.kmeans import KMeansSelection, k_means, nearest_of
from attar.methods.data.random import RandomSelection
from attar.nets import MLP
from attar.spec import build
from attar.train.network import TrainNetwork

SMALL = {"net": MLP(), "epochs": 1}


def points(*values):
    return torch.tensor(values, dtype=torch.float32).reshape(len(values), -1)


# ------------------------------------------------------------------ random


def test_random_takes_as_many_of_each_class_and_none_twice(tiny_images, open_run):
    data = tiny_images()
    with open_run() as run:
        selection = RandomSelection(ipc=5)(run, data=data)
    assert torch.bincount(data.labels[selection.indices]).tolist() == [5, 5, 5]
    assert len(set(selection.indices.tolist())) == 15
    assert selection.of == data.fingerprint


def test_random_depends_on_the_seed_alone(tiny_images, open_run):
    def choose(seed):
        with open_run(seed) as run:
            return RandomSelection(ipc=4)(run, data=tiny_images()).indices.tolist()

    assert choose(3) == choose(3)
    assert choose(3) != choose(4)


def test_random_chooses_every_image_equally_often(tiny_images, open_run):
    data, counts = tiny_images(classes=2, each=6), torch.zeros(12)
    for seed in range(300):
        with open_run(seed) as run:
            counts[RandomSelection(ipc=2)(run, data=data).indices] += 1
    assert counts.sum() == 1200
    assert chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("cls", [RandomSelection, Herding, KCenterGreedy, KMeansSelection])
def test_a_class_with_too_few_images_is_refused_before_anything_is_trained(cls, tiny_images, open_run, monkeypatch):
    monkeypatch.setattr(TrainNetwork, "__call__", lambda *a, **k: pytest.fail("a network was trained"))
    with open_run() as run, pytest.raises(DataError, match="12 images, 13 were"):
        cls(ipc=13)(run, data=tiny_images())


# ----------------------------------------------------------------- herding


def test_herding_by_hand_on_a_line():
    # mean 2. t=0: |2 - h| = 2, 1, 0, 1, 2 -> the 2. t=1: |4 - 2 - h| -> 1 or 3 alike, the first: 1.
    # t=2: |6 - 3 - h| -> the 3. t=3: |8 - 6 - h| = |2 - h| among 0 and 4, alike: 0. t=4: the rest.
    assert herd(points(0, 1, 2, 3, 4), 5).tolist() == [2, 1, 3, 0, 4]


def test_herding_by_hand_corrects_what_was_chosen_before():
    # the target of step t is (t + 1) · mean less what was chosen
    features = points((0, 0), (1, 0), (8, 0), (0.5, 3), (0.5, -3))
    assert features.mean(0).tolist() == [2, 0]
    first, second, third = herd(features, 3).tolist()
    assert first == 1  # |(2,0) - (1,0)| = 1
    assert second == 0  # |(3,0) - h|: 3 for (0,0), 5 for (8,0), √15.25 for the others
    assert third == 2  # |(5,0) - h|: 3 for (8,0), √29.25 for the others


@pytest.mark.parametrize("farthest", [False, True])
def test_herding_is_the_greedy_choice_at_every_step(farthest):
    features = torch.randn(11, 4, generator=torch.Generator().manual_seed(2))
    pick, mean, chosen = max if farthest else min, features.mean(0), []
    for t in range(11):
        rest = [i for i in range(11) if i not in chosen]
        target = (t + 1) * mean - features[chosen].sum(0)
        chosen.append(pick(rest, key=lambda i, target=target: float((target - features[i]).norm())))
    assert herd(features, 11, farthest=farthest).tolist() == chosen


def test_herding_follows_the_mean_and_the_legacy_rule_picks_outliers():
    features = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    mean = features.mean(0)
    near, far = ((features[herd(features, 10, farthest=f)].mean(0) - mean).norm() for f in (False, True))
    spread = [float(features[herd(features, 10, farthest=f)].norm(dim=1).mean()) for f in (False, True)]
    assert near < 0.1
    assert far > 2 * near
    assert spread[1] > 2 * spread[0]


def test_herding_chooses_class_by_class_on_the_shared_features(tiny_images, open_run):
    data = tiny_images()
    for legacy in (False, True):
        with open_run() as run:
            selection = Herding(ipc=3, legacy=legacy, **SMALL)(run, data=data)
            features = embedding(run, data, MLP(), 1)
        expected = [members[herd(features[members], 3, farthest=legacy)] for members in data.by_class]
        assert selection.indices.tolist() == torch.cat(expected).tolist()


# ---------------------------------------------------------------- k-center


def test_k_center_by_hand():
    # From 0: the farthest is 10; then 4 (4 away from 0, 6 from 10); then 7 (3 from both 4 and 10); then 1.
    assert k_center(points(0, 1, 4, 7, 10), 5, first=0).tolist() == [0, 4, 2, 3, 1]


def test_k_center_never_takes_an_image_twice_though_all_are_alike():
    assert sorted(k_center(torch.ones(6, 2), 6, first=3).tolist()) == list(range(6))


def radius(features, centres):
    return float(torch.cdist(features, features[list(centres)]).min(1).values.max())


@pytest.mark.parametrize("seed", range(6))
def test_k_center_covers_within_twice_the_best_radius(seed):
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(9, 2, generator=rng)
    best = min(radius(features, centres) for centres in itertools.combinations(range(9), 3))
    for first in range(9):
        assert radius(features, k_center(features, 3, first).tolist()) <= 2 * best + 1e-5


def test_k_center_starts_anywhere_in_a_class(tiny_images, open_run):
    data, starts = tiny_images(classes=2, each=4), set()
    for seed in range(30):
        with open_run(seed) as run:
            chosen = KCenterGreedy(ipc=2, **SMALL)(run, data=data).indices.view(2, 2)
            starts.add(int(chosen[0, 0]))
            features = embedding(run, data, MLP(), 1)
        for members, mine in zip(data.by_class, chosen, strict=True):
            first = members.tolist().index(int(mine[0]))
            assert mine.tolist() == members[k_center(features[members], 2, first)].tolist()
    assert starts == {0, 1, 2, 3}


# ---------------------------------------------------------------- features


def test_features_are_trained_once_whoever_asks_and_whatever_the_seed(tiny_images, open_run, monkeypatch):
    trained, call = [], TrainNetwork.__call__
    monkeypatch.setattr(
        TrainNetwork, "__call__", lambda self, run, *, data: (trained.append(run.folder), call(self, run, data=data))[1]
    )
    data = tiny_images()
    with open_run(seed=1) as run:
        Herding(ipc=2, **SMALL)(run, data=data)
        parent = run.parents["features"]
    with open_run(seed=2) as run:
        KCenterGreedy(ipc=2, **SMALL)(run, data=data)
        assert run.parents["features"] == parent
        other = tiny_images(seed=8)
    assert len(trained) == 1
    with open_run(copy=1) as run:
        Herding(ipc=2, **SMALL)(run, data=data)
    with open_run() as run:
        Herding(ipc=2, **SMALL)(run, data=other)
    assert len(set(trained)) == len(trained) == 3  # another copy and other data are other stages


def test_features_are_the_embedding_of_the_trained_network_in_evaluation_mode(tiny_images, open_run):
    data = tiny_images()
    with open_run(chunk=5) as run:
        net = build(Herding, {"net": "convnet", "net.depth": 1, "net.width": 4, "net.norm": "batch"}).net
        features = embedding(run, data, net, 2)
        folder = next((run.folder.parent / "home" / "stages").glob("*/artifact"))
    from attar.artifacts import load

    student = load(folder)
    with torch.no_grad():
        expected = student.module.eval().embed(data.normalised())
    assert torch.allclose(features, expected, atol=1e-5)
    assert not features.requires_grad


def test_features_take_the_benchmarks_training(tiny_images, open_run, monkeypatch):
    seen = []
    call = TrainNetwork.__call__
    monkeypatch.setattr(
        TrainNetwork, "__call__", lambda self, run, *, data: (seen.append(self), call(self, run, data=data))[1]
    )
    with open_run() as run:
        embedding(run, tiny_images(each=50), MLP(), 3)
    training, optimizer = seen[0].training, seen[0].training.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.nesterov) == (0.1, 0.9, 5e-4, True)
    assert (training.batch, training.total(150), training.augment) == (128, 6, "none")  # two steps an epoch
    assert training.factor(0, 6) == 1
    assert training.factor(6, 6) * optimizer.lr == pytest.approx(1e-4)


def test_selectors_refuse_features_of_no_training():
    for cls in (Herding, KCenterGreedy):
        assert cls().epochs == 10
        with pytest.raises(RecipeError, match="greater than or equal to 1"):
            build(cls, {"epochs": 0})


# ----------------------------------------------------------------- k-means


def test_k_means_finds_clusters_that_lie_apart():
    rng = torch.Generator().manual_seed(0)
    middles = points((0, 0), (9, 0), (0, 9))
    features = (middles[:, None] + torch.randn(3, 20, 2, generator=rng)).flatten(0, 1)
    for seed in range(5):
        centres = k_means(features, 3, torch.Generator().manual_seed(seed))
        order = torch.cdist(middles.double(), centres).argmin(1)
        assert sorted(order.tolist()) == [0, 1, 2]
        torch.testing.assert_close(centres[order], features.double().view(3, 20, 2).mean(1))


def test_centres_rest_at_the_means_of_their_points():
    features = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    centres = k_means(features, 7, torch.Generator().manual_seed(2))
    owner = torch.cdist(features.double(), centres).argmin(1)
    means = torch.stack([features[owner == k].double().mean(0) for k in range(7)])
    torch.testing.assert_close(centres, means)


def test_as_many_clusters_as_points_are_the_points_and_copies_do_no_harm():
    features = points(3, 1, 2)
    assert sorted(k_means(features, 3, torch.Generator()).flatten().tolist()) == [1, 2, 3]
    assert k_means(points(4, 4, 4), 3, torch.Generator()).flatten().tolist() == [4, 4, 4]


def test_the_image_nearest_to_each_centre_is_taken_and_none_twice():
    features = points(0, 1, 5, 6)
    assert nearest_of(features, points(0.9, 5.6)).tolist() == [1, 3]
    assert nearest_of(features, points(0.9, 0.8, 0.7)).tolist() == [1, 0, 2]  # the third takes what is left


def test_k_means_chooses_class_by_class_on_the_shared_features(tiny_images, open_run):
    data = tiny_images()
    with open_run() as run:
        selection = KMeansSelection(ipc=4, **SMALL)(run, data=data)
        features = embedding(run, data, MLP(), 1)
    for label, members in enumerate(data.by_class):
        mine = selection.indices[4 * label : 4 * label + 4]
        assert set(mine.tolist()) <= set(members.tolist())
        assert len(set(mine.tolist())) == 4
        with open_run() as run:
            centres = k_means(features[members], 4, run.rng("start", label))
        assert mine.tolist() == members[nearest_of(features[members], centres)].tolist()

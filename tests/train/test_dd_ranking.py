"""DD-Ranking gives every arm the same chances, and takes labels and augmentation out of the images' credit."""

import pytest
import torch

from attar.artifacts import DistilledSet
from attar.data import Splits
from attar.errors import RecipeError
from attar.metrics import augmentation_robust_score, label_robust_score
from attar.nets import MLP
from attar.run import Plan
from attar.train import ranking
from attar.train.evaluation import Protocol
from attar.train.training import Training

QUICK = Protocol(net=MLP(), networks=2, training=Training(steps=30, augment="crop"))
ALONE = Plan(threads=1, workers=1)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("ATTAR_PROGRESS", "off")


@pytest.fixture
def splits(tiny_images):
    return Splits(tiny_images(each=24), tiny_images(each=12, seed=7))


def rank(subject, splits, **more):
    given = {"seed": 0, "plan": ALONE, "rates": (0.001, 0.05), "full": Training(steps=40), **more}
    return ranking.rank(subject, splits, QUICK, **given)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_scores_are_those_of_the_accuracies(splits):
    found = rank(DistilledSet.from_real(splits.train, 2, rng()), splits, weight=0.3)
    a = found["accuracies"]
    assert set(a) == {"synthetic", "random", "synthetic hard", "synthetic plain", "random plain", "full"}
    assert found["hlr"] == a["full"] - a["synthetic hard"]
    assert found["ior"] == a["synthetic"] - a["random"]
    assert found["lrs"] == label_robust_score(found["hlr"], found["ior"], 0.3)
    assert found["ars"] == augmentation_robust_score(found["ior"], a["synthetic plain"] - a["random plain"], 0.3)
    assert a["synthetic hard"] == a["synthetic"]  # its labels are hard
    assert all(rate in (0.001, 0.05) for rate in found["learning_rates"].values())


def test_rates_are_chosen_on_held_out_images_and_the_test_set_is_read_once_an_arm(splits, monkeypatch):
    read, evaluate = [], ranking.evaluate

    def watched(arms, test, protocol, **more):
        rate = protocol.training.optimizer.lr
        read.append((sorted(arms), test is splits.test, rate, protocol.training.augment))
        return evaluate(arms, test, protocol, **more)

    monkeypatch.setattr(ranking, "evaluate", watched)
    found = rank(DistilledSet.from_real(splits.train, 2, rng()), splits)
    for names, augment in ((["random", "synthetic", "synthetic hard"], "crop"), (["random", "synthetic"], "none")):
        trials = [(rate, on_test) for some, on_test, rate, how in read if some == names and how == augment]
        assert trials == [(0.001, False), (0.05, False)]  # every arm tries the same rates
    suffix = {"crop": "", "none": " plain"}
    final = {some[0] + suffix[how]: rate for some, on_test, rate, how in read if on_test and some != ["full"]}
    assert final == found["learning_rates"]
    assert sum(on_test for _, on_test, *_ in read) == len(found["accuracies"])


def test_random_images_improve_on_random_by_nothing_and_noise_is_worse(splits):
    real = rank(DistilledSet.from_real(splits.train, 2, rng(5)), splits)
    noise = rank(DistilledSet.from_noise(splits.train, 2, rng(5)), splits)
    assert abs(real["ior"]) < 0.15
    assert noise["ior"] < real["ior"] - 0.2
    assert noise["lrs"] < real["lrs"]
    assert noise["ars"] < real["ars"]


def test_good_labels_do_not_hide_bad_images(splits):
    """Labels that give the classes away in a noise set raise its own accuracy at most, not its hard-label recovery."""
    noise = DistilledSet.from_noise(splits.train, 2, rng())
    soft = torch.nn.functional.one_hot(noise.labels, 3).float()
    noise.labels = soft

    def label(images):
        return torch.full((len(images), 3), 1 / 3)  # a teacher that knows nothing of real images

    found = rank(noise, splits, label=label)
    assert found["hlr"] > 0.2
    assert found["accuracies"]["random"] < 0.7  # random images got these labels, not their classes


def test_soft_labels_need_a_labeller(splits):
    subject = DistilledSet.from_real(splits.train, 2, rng())
    subject.labels = torch.full((6, 3), 1 / 3)
    with pytest.raises(RecipeError, match="hand over label="):
        rank(subject, splits)
    with pytest.raises(RecipeError, match="at least one"):
        rank(DistilledSet.from_real(splits.train, 2, rng()), splits, rates=())

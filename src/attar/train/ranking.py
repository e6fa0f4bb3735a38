"""DD-Ranking: judge a distilled set apart from its labels and its augmentation (arXiv 2505.13300).

Two differences from the released code, both to the same effect in every arm: accuracy is read at the last step and not
at the best of many looks at the test set, and learning rates are chosen on a held-out part of the training images. Soft
labels are stored ones, one distribution an image, learned with cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from attar.artifacts import DistilledSet
from attar.data import Splits
from attar.errors import RecipeError
from attar.metrics import ranking
from attar.run import Drop, Plan, keys
from attar.spec import build, to_json
from attar.train.evaluation import Protocol, evaluate
from attar.train.training import Labelled, TensorSource, Training

LEARNING_RATES = (0.001, 0.005, 0.01, 0.05, 0.1)  # of every small set's students
FULL = Training(epochs=199, batch=512, schedule=Drop(at=(0.5,), by=0.1))  # the paper's, on all data

Arms = dict[str, Callable[[int], Labelled]]
Label = Callable[[Tensor], Tensor]  # images [n, C, H, W] in the space networks see -> probabilities [n, classes]


def rank(
    subject: DistilledSet,
    splits: Splits,
    protocol: Protocol,
    *,
    seed: int,
    plan: Plan,
    label: Label | None = None,
    rates: Sequence[float] = LEARNING_RATES,
    full: Training = FULL,
    weight: float = 0.5,
) -> dict[str, Any]:
    """Return DD-Ranking's scores of a distilled set, with the accuracies that they are made of.

    Args:
        subject: the set; its labels are its own, and hard labels are their classes.
        splits: the real data; the test set is read once, with the rates chosen.
        protocol: network, number of networks, training; its augmentation is the set's own.
        seed: of networks and random subsets.
        plan: threads, and how many networks train side by side.
        label: gives random images the set's kind of labels; needed for a set with soft labels alone.
        rates: learning rates to choose from, for every arm of few images.
        full: how a network is trained on all data.
        weight: w of LRS and γ of ARS.

    Returns:
        `hlr`, `ior`, `lrs`, `ars`; `accuracies` and `learning_rates` by arm: `synthetic` and `random` with the set's
        own labels and augmentation, `… plain` without augmentation, `synthetic hard` with hard labels, `full`.

    Raises:
        RecipeError: soft labels without `label`, no rate, or a weight outside [0, 1].
    """
    if subject.labels.dim() == 2 and label is None:
        raise RecipeError(
            "this set has soft labels, and random images need the same kind: hand over label=, a function from images "
            "to probabilities, such as the teacher's"
        )
    if not rates:
        raise RecipeError("there is no learning rate to choose from; give at least one")
    plain = _changed(protocol, {"augment": "none"})
    accuracies: dict[str, float] = {}
    chosen: dict[str, float] = {}
    for setting, suffix in ((protocol, ""), (plain, " plain")):
        hard = ("synthetic hard",) if not suffix else ()
        names = ("synthetic", "random", *hard)
        found, best = _tuned(names, subject, splits, setting, seed=seed, plan=plan, label=label, rates=rates)
        accuracies |= {name + suffix: value for name, value in found.items()}
        chosen |= {name + suffix: value for name, value in best.items()}
    whole = build(Protocol, {"training": to_json(full)}, base={**to_json(protocol), "networks": 1})
    accuracies["full"] = _accuracies({"full": lambda index: splits.train}, splits, whole, seed, plan)["full"]
    recovery = ranking.hard_label_recovery(accuracies["full"], accuracies["synthetic hard"])
    improvement = ranking.improvement_over_random(accuracies["synthetic"], accuracies["random"])
    bare = ranking.improvement_over_random(accuracies["synthetic plain"], accuracies["random plain"])
    return {
        "hlr": recovery,
        "ior": improvement,
        "lrs": ranking.label_robust_score(recovery, improvement, weight),
        "ars": ranking.augmentation_robust_score(improvement, bare, weight),
        "accuracies": accuracies,
        "learning_rates": chosen,
    }


def _tuned(
    names: Sequence[str],
    subject: DistilledSet,
    splits: Splits,
    protocol: Protocol,
    *,
    seed: int,
    plan: Plan,
    label: Label | None,
    rates: Sequence[float],
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the test accuracy and the learning rate of every arm, each with its best rate on held-out images."""
    trial = splits.tuning(seed)
    arms = {name: arm for name, arm in _arms(subject, trial, seed, label).items() if name in names}
    scores = {
        rate: _accuracies(arms, trial, _changed(protocol, {"optimizer": {"lr": rate}}), seed, plan) for rate in rates
    }
    best = {name: max(rates, key=lambda rate: scores[rate][name]) for name in names}
    arms = _arms(subject, splits, seed, label)
    found: dict[str, float] = {}
    for name in names:
        setting = _changed(protocol, {"optimizer": {"lr": best[name]}})
        found |= _accuracies({name: arms[name]}, splits, setting, seed, plan)
    return found, best


def _arms(subject: DistilledSet, splits: Splits, seed: int, label: Label | None) -> Arms:
    """Return the arms of few images; the random one draws a subset a network."""
    hard = subject.labels if subject.labels.dim() == 1 else subject.labels.argmax(1)

    def random(index: int) -> Labelled:
        rng = keys.generator(seed, ("ranking",), "random subset", (index,))
        drawn = DistilledSet.from_real(splits.train, subject.ipc, rng)
        return TensorSource(drawn.images, drawn.labels if label is None else label(drawn.images))

    return {
        "synthetic": lambda index: TensorSource(subject.images, subject.labels),
        "random": random,
        "synthetic hard": lambda index: TensorSource(subject.images, hard),
    }


def _accuracies(arms: Arms, splits: Splits, protocol: Protocol, seed: int, plan: Plan) -> dict[str, float]:
    table = evaluate(arms, splits.test, protocol, seed=seed, plan=plan)
    return {row["name"]: row["accuracy"] for row in table}


def _changed(protocol: Protocol, training: Mapping[str, Any]) -> Protocol:
    return build(Protocol, {"training": training}, base=to_json(protocol))

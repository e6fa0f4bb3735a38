"""An evaluation as a reader meets it: the arms with their intervals, and the result in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attar.report.charts import Bar
from attar.report.numbers import half_width, percent, t_interval
from attar.report.recipe import told

NOUNS = {"distilled-set": "distilled images", "selection": "chosen images"}


@dataclass(frozen=True)
class Arm:
    """What one training set came to: accuracies in [0, 1] per network, their mean and sample standard deviation.

    `low` and `high` are the ends of the 95 % t interval of the mean over networks, both the mean for a single network;
    `steps` and `seconds` are those of training one network.
    """

    name: str
    accuracy: float
    deviation: float | None
    accuracies: list[float]
    networks: int
    low: float
    high: float
    images: int | None
    bytes: float | None
    steps: int | None
    seconds: float | None
    nll: float | None = None  # nats; of a network that was graded itself, as are the next two
    ece: float | None = None  # expected calibration error in [0, 1]
    parameters: int | None = None

    @property
    def tone(self) -> str:
        """The colour class of the arm: what was made, the random subset of the same size, or the rest."""
        return {"random": "second", "full": "rest"}.get(self.name.removesuffix(" (baseline)"), "first")


def read_arms(entries: Any, networks: Any = None) -> list[Arm]:
    """Read the arms of an evaluation in their order; entries without an accuracy in [0, 1] are left out."""
    arms = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, Mapping):
            continue
        listed = entry.get("accuracies")
        each = [value for value in map(_share, listed if isinstance(listed, list) else ()) if value is not None]
        mean = sum(each) / len(each) if each else _share(entry.get("accuracy"))
        if mean is None:
            continue
        count = len(each) or int(_number(networks) or 1)
        deviation = _share(entry.get("accuracy_std"))
        if len(each) > 1:
            low, high = t_interval(each)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in each) / (len(each) - 1))
        else:
            half = half_width(deviation, count) if deviation is not None and count > 1 else 0.0
            low, high = mean - half, mean + half
        images, steps = _number(entry.get("images")), _number(entry.get("steps"))
        parameters = _number(entry.get("parameters"))
        arms.append(
            Arm(
                name=str(entry.get("name", "unnamed")),
                accuracy=mean,
                deviation=deviation,
                accuracies=each,
                networks=count,
                low=low,
                high=high,
                images=None if images is None else int(images),
                bytes=_number(entry.get("bytes")),
                steps=None if steps is None else int(steps),
                seconds=_number(entry.get("seconds")),
                nll=_number(entry.get("nll")),
                ece=_share(entry.get("ece")),
                parameters=None if parameters is None else int(parameters),
            )
        )
    return arms


def bars(arms: Sequence[Arm]) -> list[Bar]:
    """Return the arms as bars; the interval is cut to [0, 1]."""
    return [
        Bar(
            f"{arm.name} · {arm.images:,} images" if arm.images is not None else arm.name,
            arm.accuracy,
            max(arm.low, 0.0),
            min(arm.high, 1.0),
            arm.tone,
        )
        for arm in arms
    ]


def headline(arms: Sequence[Arm], kind: str) -> str:
    """Say the result in one sentence; where the random subset is as good, it says that instead.

    >>> arms = read_arms([dict(name="distilled", accuracy=0.77, images=100), dict(name="random", accuracy=0.722),
    ...                   dict(name="full", accuracy=0.84, images=10_000)])
    >>> headline(arms, "distilled-set").replace("\u202f", " ")
    '100 images stand in for 10,000: 77.0 % test accuracy, against 72.2 % for as many random ones and 84.0 % for all.'
    """
    if kind in ("student", "dual-encoder", "encoder", "autoencoder"):
        return _network_headline(arms, kind)
    by_name = {arm.name: arm for arm in arms}
    made = next((arm for arm in arms if arm.name not in ("random", "full")), None)
    random, full = by_name.get("random"), by_name.get("full")
    if made is None:
        return "; ".join(f"{arm.name}: {percent(arm.accuracy)} test accuracy" for arm in arms) + "."
    count = "" if made.images is None else f"{made.images:,} "
    subject = f"{count}{NOUNS.get(kind, 'images')}"
    reached = f"{percent(made.accuracy)} test accuracy"
    against = []
    if random:
        against.append(f"{percent(random.accuracy)} for as many random ones")
    if full:
        against.append(
            f"{percent(full.accuracy)} for all" if full.images else f"{percent(full.accuracy)} for all the data"
        )
    others = f", against {' and '.join(against)}" if against else ""
    if random and made.accuracy <= random.accuracy:
        return f"{subject} do no better than random ones: {reached}{others}.".capitalize()
    if random and made.low <= random.high:
        others += "; the intervals overlap"
    if full and full.images and count:
        return f"{count}images stand in for {full.images:,}: {reached}{others}."
    return f"{subject} reach {reached}{others}.".capitalize()


def _network_headline(arms: Sequence[Arm], kind: str) -> str:
    """Say what a trained network came to."""
    if kind == "student":
        others = " and ".join(f"{percent(arm.accuracy)} for the {arm.name}" for arm in arms[1:])
        return (
            f"The student reaches {percent(arms[0].accuracy)} test accuracy{', against ' + others if others else ''}."
        )
    found = {arm.name: percent(arm.accuracy) for arm in arms}
    if kind == "dual-encoder":
        return (
            f"The right text comes first for {found.get('image to text @1', '–')} of the test images, "
            f"the right image for {found.get('text to image @1', '–')} of their texts."
        )
    return (
        f"A linear probe on its frozen features reaches {found.get('encoder, linear probe', '–')} test accuracy, "
        f"against {found.get('untrained, linear probe', '–')} on those of an untrained network."
    )


def net_name(net: Any) -> str:
    """Return a network as words: its name, or the kind of its spec with the fields.

    >>> net_name("mlp"), net_name({"kind": "resnet18", "norm": "batch"})
    ('mlp', 'resnet18 (norm batch)')
    """
    if not isinstance(net, Mapping):
        return str(net)
    fields = told({key: value for key, value in net.items() if key != "kind"})
    return str(net.get("kind", "network")) + (f" ({fields})" if fields else "")


def _share(value: Any) -> float | None:
    """Return a number in [0, 1], or None for anything else."""
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)

"""Learning classes one group after another, with a small set as the only memory of those before.

A network is trained from scratch on the memory of all classes seen so far, at every step (GDumb, Prabhu et al., ECCV
2020; the use that DM and DataDAM make of it, arXiv 2110.04181): what is compared is what the memory holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.artifacts import DistilledSet
from attar.data import Images
from attar.errors import RecipeError

Table = Sequence[Mapping[str, Any]]  # one row an arm, as `evaluate` gives it


def class_groups(classes: int, steps: int, order: int) -> list[list[int]]:
    """Return which classes come at each step: `steps` groups of as equal size as can be, in a random order.

    The order is NumPy's permutation under the seed `order`, as in DM's code; the paper takes 0 to 4.

    Raises:
        RecipeError: fewer classes than steps, or fewer than two steps.
    """
    if not 2 <= steps <= classes:
        raise RecipeError(f"{classes} classes can come in 2 to {classes} steps; got {steps}")
    drawn = np.random.RandomState(order).permutation(classes)
    return [group.tolist() for group in np.array_split(drawn, steps)]


def images_of(data: Images, seen: Sequence[int]) -> Images:
    """Return the images of the classes `seen` alone, which are numbered anew in that order."""
    number = _numbers(data.num_classes, seen)
    chosen = torch.cat([data.by_class[label] for label in seen]).sort().values
    subset = data.subset(chosen)
    labels = number[subset.labels.cpu()].to(subset.labels.device)
    return dataclasses.replace(subset, labels=labels, classes=tuple(data.classes[label] for label in seen))


def set_of(made: DistilledSet, seen: Sequence[int], like: Images) -> DistilledSet:
    """Return the images of a small set that belong to the classes `seen`; soft labels are shared out among these.

    Args:
        made: the set; with soft labels an image belongs to its most probable class.
        seen: the classes, which are numbered anew in that order.
        like: the real images of these classes, from `images_of`.
    """
    hard = made.hard_labels().cpu()
    number = _numbers(made.num_classes, seen)
    rows = torch.cat([(hard == label).nonzero()[:, 0] for label in seen])
    images, labels = made.images[rows.to(made.images.device)], made.labels[rows.to(made.labels.device)]
    if labels.dim() == 1:
        labels = number[labels.cpu()].to(made.labels.device)
    else:
        labels = labels[:, torch.tensor(seen, device=labels.device)]
        labels = labels / labels.sum(1, keepdim=True)
    return DistilledSet(images, labels, like, made.hints)


def learn_in_steps(
    judge: Callable[[list[int]], Table], names: Sequence[str], *, steps: int, order: int
) -> dict[str, Any]:
    """Return what networks are worth behind each step, and their average over the steps.

    Args:
        judge: trains and scores networks on the classes given, all that were seen so far.
        names: of all classes.
        steps: groups of classes.
        order: seed of the order in which they come.

    Returns:
        `order`, `steps` (each with the `classes` that came new, how many were `seen`, and its `arms`) and `average`
        (arm to the mean accuracy over steps).

    Raises:
        RecipeError: as `class_groups`.
    """
    seen: list[int] = []
    told: list[dict[str, Any]] = []
    for group in class_groups(len(names), steps, order):
        seen += group
        told.append({"classes": [names[label] for label in group], "seen": len(seen), "arms": list(judge(list(seen)))})
    arms = [row["name"] for row in told[0]["arms"]]
    found = {arm: [row["accuracy"] for step in told for row in step["arms"] if row["name"] == arm] for arm in arms}
    return {"order": order, "steps": told, "average": {arm: sum(each) / len(each) for arm, each in found.items()}}


def _numbers(classes: int, seen: Sequence[int]) -> Tensor:
    """Return the new number `[classes]` of every class, −1 for those not seen."""
    numbers = torch.full((classes,), -1, dtype=torch.int64)
    numbers[torch.tensor(seen)] = torch.arange(len(seen))
    return numbers

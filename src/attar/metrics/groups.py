"""How often a classifier is right on head, middle and tail: groups of neighbouring classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from attar.errors import DataError
from attar.metrics.accuracy import accuracy


def accuracy_by_group(logits: Tensor, labels: Tensor, firsts: Sequence[int]) -> list[float]:
    """Return the accuracy on the classes 0 … firsts[0] − 1, on firsts[0] … firsts[1] − 1, and so on to the last.

    `logits` `[n, classes]`, `labels` integers `[n]`; predictions are among all classes. `firsts` are (3, 7) for
    CIFAR-10-LT and (36, 71) for CIFAR-100-LT.

    Raises:
        DataError: a group without a sample.
    """
    edges = [0, *firsts, logits.shape[1]]
    found = []
    for low, high in itertools.pairwise(edges):
        inside = (labels >= low) & (labels < high)
        if not inside.any():
            raise DataError(f"no sample has a class from {low} to {high - 1}; the groups are {list(firsts)}")
        found.append(accuracy(logits[inside], labels[inside]))
    return found

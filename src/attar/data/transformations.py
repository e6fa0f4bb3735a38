"""Transformations that a network can tell apart: turns of a picture, orders of its colours, and both."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor

from attar.errors import RecipeError

Transformations = Literal["turns", "colours", "three-colours", "turns-and-colours", "turns-and-three-colours"]

_ORDERS = {
    "colours": tuple(itertools.permutations(range(3))),
    "three-colours": ((0, 1, 2), (1, 2, 0), (2, 0, 1)),
}


def count(name: Transformations) -> int:
    """Return how many transformations there are, the identity included: 4, 6, 3, 24 or 12.

    >>> [count(name) for name in ("turns", "colours", "three-colours", "turns-and-colours", "turns-and-three-colours")]
    [4, 6, 3, 24, 12]
    """
    return (4 if name.startswith("turns") else 1) * len(_orders(name))


def transformed(images: Tensor, name: Transformations) -> Tensor:
    """Return all transformations of square images `[n, C, S, S]`, `[n · M, C, S, S]`: those of one image in a row.

    The first is the identity. Turns are by 0, 90, 180 and 270 degrees.

    Raises:
        RecipeError: orders of colours are asked for, and there are not three.
    """
    orders = _orders(name)
    if len(orders) > 1 and images.shape[1] != 3:
        raise RecipeError(f"transformations={name} permutes three colours, these images have {images.shape[1]}")
    turns = range(4) if name.startswith("turns") else range(1)
    made = [_turned(images[:, list(order)] if len(orders) > 1 else images, turn) for turn in turns for order in orders]
    return torch.stack(made, 1).flatten(0, 1)


def _orders(name: str) -> tuple[tuple[int, ...], ...]:
    return _ORDERS.get(name.removeprefix("turns-and-"), ((0, 1, 2),))


def _turned(images: Tensor, turns: int) -> Tensor:
    return torch.rot90(images, turns, (2, 3)) if turns else images

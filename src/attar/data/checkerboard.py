"""`checkerboard`: points spread evenly over the dark squares of a board, with edges that no Gaussian has."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.data.samples import Samples
from attar.spec import digest

SIDE = 4  # squares a side, each one unit wide; the board lies around the origin


class Checkerboard(Samples):
    """Points of the plane, uniform on the eight dark squares of a 4 × 4 board on [-2, 2]²; conditions are squares.

    The corner at (-2, -2) is dark. Squares are numbered row by row, from the bottom.
    """

    def __init__(self) -> None:
        self.source, self.shape = "checkerboard", (2,)
        dark = [(x, y) for y in range(SIDE) for x in range(SIDE) if (x + y) % 2 == 0]
        self.corners = torch.tensor(dark) - SIDE / 2  # of each square the lowest and leftmost [8, 2]
        self.conditions = tuple(f"square {number}" for number in range(len(dark)))

    def draw_named(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `n` points `[n, 2]` and the numbers of their squares `[n]`."""
        which = torch.randint(len(self.corners), (n,), generator=rng)
        return self.corners[which] + torch.rand(n, 2, generator=rng), which

    def square_of(self, x: Tensor) -> Tensor:
        """Return the square that each point `[n, 2]` lies in `[n]`, −1 for none."""
        inside = (x[:, None] >= self.corners) & (x[:, None] <= self.corners + 1)
        found = inside.all(2)
        return torch.where(found.any(1), found.int().argmax(1), -1)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the name and the number of squares."""
        return digest([self.source, SIDE])

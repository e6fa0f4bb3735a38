"""Layers that bring a student's features to the teacher's shape while it trains: hints, guesses, connectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attar.errors import RecipeError


def hint_regressor(student: torch.Size, teacher: torch.Size) -> nn.Module:
    """Return FitNet's regressor from one shape of a sample to another: a convolution with batch norm and ReLU.

    3×3 of stride 2 where the student's map is twice as large, 4×4 transposed of stride 2 where it is half as large,
    else one whose kernel cuts the map down. Vectors get a linear layer.

    Raises:
        RecipeError: shapes of different kinds, or a student's map that is smaller and not by half.
    """
    if len(student) == len(teacher) == 1:
        return nn.Linear(student[0], teacher[0])
    both_maps(student, teacher)
    inputs, outputs, size, wanted = student[0], teacher[0], student[1], teacher[1]
    layer: nn.Module
    if size == 2 * wanted:
        layer = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif 2 * size == wanted:
        layer = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    elif size >= wanted:
        layer = nn.Conv2d(inputs, outputs, 1 + size - wanted)
    else:
        raise RecipeError(
            f"a map of {size} pixels cannot be made one of {wanted}; name places of more similar sizes with "
            "pairs=STUDENT=TEACHER"
        )
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def connector(student: torch.Size, teacher: torch.Size) -> nn.Module:
    """Return a 1×1 convolution with batch norm from the student's channels to the teacher's, linear behind.

    Raises:
        RecipeError: a shape that is no map's.
    """
    both_maps(student, teacher)
    convolution = nn.Conv2d(student[0], teacher[0], 1, bias=False)
    nn.init.normal_(convolution.weight, 0.0, math.sqrt(2.0 / teacher[0]))
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher[0]))


class Guess(nn.Module):
    """A guess of the teacher's map: its mean by three 1×1 convolutions, and one variance a channel.

    Args:
        student: shape of one sample of the student.
        teacher: that of the teacher.
        variance: what the variances start from.
        epsilon: what variances do not fall below.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size, *, variance: float, epsilon: float) -> None:
        super().__init__()
        both_maps(student, teacher)
        wide = teacher[0]
        self.mean = nn.Sequential(
            nn.Conv2d(student[0], wide, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 1, bias=False),
        )
        self.raw_variances = nn.Parameter(torch.full((wide,), math.log(math.expm1(variance - epsilon))))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the mean `[n, teacher's channels, h, w]`."""
        mean: Tensor = self.mean(maps)
        return mean


def both_maps(student: torch.Size, teacher: torch.Size) -> None:
    """Refuse shapes of a sample that are no maps'.

    Raises:
        RecipeError: there is one.
    """
    if len(student) != 3 or len(teacher) != 3:
        raise RecipeError(
            f"maps [channels, height, width] are compared; got {list(student)} and {list(teacher)}. Name places that "
            "give maps with pairs=STUDENT=TEACHER"
        )

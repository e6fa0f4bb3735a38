"""Training and test images that belong together, and where a test set comes from when a source has none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from attar.data.arrays import measure
from attar.data.images import Images
from attar.errors import DataError

HELD_OUT = 1 / 6  # of every class; of Fashion-MNIST's training images that is 10,000, as many as its test set has
HELD_OUT_SEED = 0


@dataclass(frozen=True, eq=False)
class Splits:
    """What a source yields: training and test images in the same space, and a note where a split was made here."""

    train: Images
    test: Images
    note: str = ""

    def tuning(self, seed: int = 0) -> Splits:
        """Return splits made of the training set alone, for code that tunes and must never see the test set.

        The test set of the result is a stratified sixth of the training images, its training set the rest. Constants
        and whitening stay those of the whole training set.
        """
        train, held_out = self.train.split(HELD_OUT, seed)
        note = f"tuning: validation is {len(held_out)} of the {len(self.train)} training images, seed {seed}"
        return Splits(train, held_out, note)

    def to(self, device: Any) -> Splits:
        """Return the splits on `device`."""
        return Splits(self.train.to(device), self.test.to(device), self.note)


def drawn_test(images: Images) -> Splits:
    """Split off a stratified sixth as test set; constants measured on all images are measured again on the rest.

    Raises:
        DataError: a class has fewer than two images.
    """
    train, test = images.split(HELD_OUT, HELD_OUT_SEED)
    note = f"{images.source} has no test split: {len(test)} of its {len(images)} images drawn, seed {HELD_OUT_SEED}"
    constants: dict[str, Any] = {}
    if torch.equal(images.mean.cpu(), measure(images.pixels)[0].cpu()):
        mean, std = measure(train.pixels)
        constants = {"mean": mean, "std": std}
    return Splits(dataclasses.replace(train, **constants), dataclasses.replace(test, **constants), note)


def paired(train: Images, test: Images | None) -> Splits:
    """Make splits of a source's own parts: the test images take over the training set's constants.

    Raises:
        DataError: the two differ in image shape or classes.
    """
    if test is None:
        return drawn_test(train)
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        shapes = f"{list(train.pixels.shape[1:])} and {list(test.pixels.shape[1:])}"
        raise DataError(f"training and test images of {train.source} differ in shape: {shapes}")
    if train.classes != test.classes:
        raise DataError(
            f"training and test images of {train.source} have different classes: {train.classes}, {test.classes}"
        )
    return Splits(train, dataclasses.replace(test, mean=train.mean, std=train.std))

"""`fashion-mnist-mini`: 10,000 training and 2,000 test images of real Fashion-MNIST that ship with attar.

Balanced over the ten classes (1,000 and 200 a class). Of each class of each official split, the images are those whose
SHA-256 of `fashion-mnist-mini:0:SPLIT:INDEX` is smallest (0 is the seed, SPLIT `train` or `test`, INDEX the image's
place in the official file, from 0), in that order. A hash, unlike a generator, is the same in every version of every
library. `scripts/make_fashion_mnist_mini.py` in the repository makes the files from Debian's `dataset-fashion-mnist`.

Each split is one lossless grey PNG: a contact sheet with 100 images a row, class-major, so that a picture's place is
its label. Fashion-MNIST is © 2017 Zalando SE, under the MIT licence; see `NOTICE` beside this file.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
from PIL import Image

from attar.data.arrays import from_arrays
from attar.data.constants import FASHION_MNIST, FASHION_MNIST_CLASSES
from attar.data.images import Images
from attar.data.splits import Splits, paired
from attar.errors import DamagedFile

SIDE = 28
COLUMNS = 100


def fashion_mnist_mini() -> Splits:
    """Load the embedded images, with the constants of the whole Fashion-MNIST.

    Raises:
        DamagedFile: the installed files are missing or do not decode.
    """
    return paired(_read("train", 1000), _read("test", 200))


def _read(split: str, per_class: int) -> Images:
    classes = len(FASHION_MNIST_CLASSES)
    name = f"fashion-mnist-mini-{split}.png"
    try:
        with (
            resources.files(__package__).joinpath(name).open("rb") as file,
            Image.open(file, formats=("PNG",)) as sheet,
        ):
            pixels = np.asarray(sheet)
        tiles = pixels.reshape(classes * per_class // COLUMNS, SIDE, COLUMNS, SIDE)
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedFile(f"attar's own file {name} is damaged ({error}); install attar again") from None
    images = tiles.transpose(0, 2, 1, 3).reshape(-1, SIDE, SIDE)
    labels = np.repeat(np.arange(classes), per_class)
    mean, std = FASHION_MNIST
    return from_arrays(images, labels, FASHION_MNIST_CLASSES, source="fashion-mnist-mini", mean=mean, std=std)

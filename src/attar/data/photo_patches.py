"""`photo-patches`: real colour photographs, cut into patches that are told apart by the photograph they come from.

64 × 64 RGB, 21 classes, 250 training and 50 test patches of each: those of the left 70 % of a photograph are for
training and those of the right 30 % for testing, so no pixel is in both. The photographs ship with scikit-image (7) and
scikit-learn (2), and with Debian's `mate-backgrounds` (12, or the same in the folder that `ATTAR_MATE_BACKGROUNDS`
names).

scikit-image's are in the public domain, CC0 or without known restrictions; scikit-learn's are CC BY 2.0
(danielbuechele; vultilion, both on Flickr); those of mate-backgrounds are © their photographers, under the GPL,
version 2 or later.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
from PIL import Image

from attar.data.arrays import from_arrays
from attar.data.splits import Splits, paired
from attar.errors import DamagedFile, DataError

SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg")
SKLEARN = ("china.jpg", "flower.jpg")
MATE = (
    "Aqua.jpg", "Blinds.jpg", "Dune.jpg", "FreshFlower.jpg", "Garden.jpg", "GreenMeadow.jpg", "LadyBird.jpg",
    "RainDrops.jpg", "Storm.jpg", "TwoWings.jpg", "Wood.jpg", "YellowFlower.jpg",
)  # fmt: skip
DEBIAN_FOLDER = Path("/usr/share/backgrounds/mate/nature")
SHORT_SIDE = 400  # pixels that a photograph is resized to, the shorter way
SIDE = 64  # of a patch
TRAIN_SHARE = 0.7  # of a photograph's width, from the left
EACH = (250, 50)  # training and test patches of a photograph
PLASTIC = 1.324717957244746  # x³ = x + 1: multiples of 1/x and 1/x² fill a square more evenly than random points do


def read_photo_patches() -> Splits:
    """Cut the patches, in the order of the photographs.

    Raises:
        DataError: photographs are missing; the message says which packages bring them.
        DamagedFile: a photograph does not decode.
    """
    files = _files()
    cut = [patches(_opened(file)) for file in files]
    classes = [file.stem for file in files]
    train, test = (
        from_arrays(np.concatenate(parts), np.repeat(np.arange(len(files)), each), classes, source="photo-patches")
        for parts, each in zip(zip(*cut, strict=True), EACH, strict=True)
    )
    return paired(train, test)


def patches(photo: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the training and test patches `[n, 64, 64, 3]` of a photograph, spread evenly over its two parts."""
    scale = SHORT_SIDE / min(photo.size)
    size = (round(photo.width * scale), round(photo.height * scale))
    pixels = np.asarray(photo.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
    border = round(pixels.shape[1] * TRAIN_SHARE)
    return _spread(pixels[:, :border], EACH[0]), _spread(pixels[:, border:], EACH[1])


def _spread(part: np.ndarray, count: int) -> np.ndarray:
    numbers = np.arange(1, count + 1)
    rows = ((0.5 + numbers / PLASTIC) % 1 * (part.shape[0] - SIDE + 1)).astype(int)
    columns = ((0.5 + numbers / PLASTIC**2) % 1 * (part.shape[1] - SIDE + 1)).astype(int)
    corners = zip(rows, columns, strict=True)
    return np.stack([part[row : row + SIDE, column : column + SIDE] for row, column in corners])


def _opened(file: Path) -> Image.Image:
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as photo:
            photo.load()
            return photo
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedFile(f"{file} does not decode ({error}); install its package again") from None


def _files() -> list[Path]:
    """Return where the photographs lie, or say everything that is missing at once."""
    named = os.environ.get("ATTAR_MATE_BACKGROUNDS")
    folders = {
        "pip install scikit-image": (_package("skimage", "data"), SKIMAGE),
        "pip install scikit-learn": (_package("sklearn", "datasets", "images"), SKLEARN),
        "apt install mate-backgrounds": (Path(named).expanduser() if named else DEBIAN_FOLDER, MATE),
    }
    missing = {
        command: folder
        for command, (folder, names) in folders.items()
        if folder is None or not all((folder / name).is_file() for name in names)
    }
    if missing:
        places = ", ".join(str(folder) for folder in missing.values() if folder is not None)
        commands = " and ".join(f"'{command}'" for command in missing)
        raise DataError(
            f"data 'photo-patches' lacks photographs{' in ' + places if places else ''}; install them with {commands}"
            " (or let ATTAR_MATE_BACKGROUNDS name the folder of mate-backgrounds' nature photographs)"
        )
    return [folder / name for folder, names in folders.values() if folder is not None for name in names]


def _package(name: str, *inner: str) -> Path | None:
    """Return a folder inside an installed package, without importing it; none where it is not installed."""
    found = importlib.util.find_spec(name)
    places = found.submodule_search_locations if found else None
    return Path(places[0]).joinpath(*inner) if places else None

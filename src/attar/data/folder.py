"""A folder of pictures: one sub-folder a class, or `train/` and `test/` with one sub-folder a class in each."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from attar.data import captions
from attar.data.arrays import from_arrays
from attar.data.images import Images
from attar.data.splits import Splits, paired
from attar.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # a picture's mode to the one it is read in


def read_folder(folder: Path, source: str) -> Splits:
    """Read a folder of class sub-folders, or one with a table of captions; classes stand in alphabetical order.

    Raises:
        DataError: no class sub-folders, a class without pictures, or pictures that differ in size or channels, are not
            square, are corrupt or have transparency.
    """
    if not folder.is_dir():
        raise DataError(f"data '{source}' must be a folder with one sub-folder a class; {folder} is a file")
    if any(captions.table_in(part) for part in (folder, folder / "train")):
        return captions.read_captioned_folder(folder, source)
    if (folder / "train").is_dir() and _sub_folders(folder / "train"):
        train = _read_classes(folder / "train", source, None)
        test = _read_classes(folder / "test", source, train.classes) if (folder / "test").is_dir() else None
        return paired(train, test)
    return paired(_read_classes(folder, source, None), None)


def decode(picture: Image.Image, name: str) -> np.ndarray:
    """Decode an opened picture to uint8 `[H, W]` (grey) or `[H, W, 3]`.

    Raises:
        DataError: its data are corrupt, or its mode (transparency, 16 bits) is not one that images here have.
    """
    if picture.mode not in MODES:
        raise DataError(f"{name} has colour mode {picture.mode}; save it as 8-bit grey or RGB without transparency")
    try:
        return np.asarray(picture.convert(MODES[picture.mode]))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{name} is corrupt: {error}") from None


def _read_classes(folder: Path, source: str, expected: tuple[str, ...] | None) -> Images:
    classes = _sub_folders(folder)
    if not classes:
        raise DataError(f"data '{source}' needs one sub-folder a class in {folder.absolute()}; it has none")
    names = tuple(path.name for path in classes)
    if expected and names != expected:
        odd = sorted(set(names) ^ set(expected))
        raise DataError(
            f"training and test folders of '{source}' have different classes; only one has: {', '.join(odd)}"
        )
    files, labels = [], []
    for label, path in enumerate(classes):
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not pictures:
            raise DataError(f"class folder {path.absolute()} holds no pictures ({', '.join(SUFFIXES)})")
        files += pictures
        labels += [label] * len(pictures)
    return from_arrays(read_pictures(files), np.array(labels), names, source=source)


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_pictures(files: list[Path]) -> np.ndarray:
    """Read all files into one array, holding each against the first before its pixels are decoded."""
    first = _shape(files[0])
    images = np.empty((len(files), *first), np.uint8)
    for place, path in enumerate(files):
        shape = _shape(path)
        if shape != first:
            raise DataError(
                f"images differ in size or channels: {files[0]} is {_words(first)}, {path} is {_words(shape)};"
                " bring all of them to one size"
            )
        with Image.open(path, formats=FORMATS) as picture:
            images[place] = decode(picture, str(path))
    return images


def _shape(path: Path) -> tuple[int, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
                mode = MODES.get(picture.mode, picture.mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}") from None
    if width != height:
        raise DataError(f"{path} is {width} × {height} pixels; images must be square: crop or pad them first")
    return (height, width, 3) if mode == "RGB" else (height, width)


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]} in {'colour' if len(shape) == 3 else 'grey'}"

"""A folder of pictures: one sub-folder a class, or `train/` and `test/` with one sub-folder a class in each."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from attar import progress
from attar.data import captions
from attar.data.arrays import from_arrays
from attar.data.images import Images
from attar.data.splits import Splits, paired
from attar.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # a picture's mode to the one it is read in


def read_folder(folder: Path, source: str, crop: int | None = None) -> Splits:
    """Read a folder of class sub-folders, or one with a table of captions; classes stand in alphabetical order.

    With `crop` pictures of any size are brought to as many pixels a side: see `decode`.

    Raises:
        DataError: no class sub-folders, a class without pictures, or pictures that are corrupt or have transparency;
            without `crop` also those that differ in size or channels or are not square.
    """
    if not folder.is_dir():
        raise DataError(f"data '{source}' must be a folder with one sub-folder a class; {folder} is a file")
    if any(captions.table_in(part) for part in (folder, folder / "train")):
        return captions.read_captioned_folder(folder, source, crop)
    if (folder / "train").is_dir() and _sub_folders(folder / "train"):
        train = _read_classes(folder / "train", source, None, crop)
        test = _read_classes(folder / "test", source, train.classes, crop) if (folder / "test").is_dir() else None
        return paired(train, test)
    return paired(_read_classes(folder, source, None, crop), None)


def decode(picture: Image.Image, name: str, crop: int | None = None) -> np.ndarray:
    """Decode an opened picture to uint8 `[H, W]` (grey) or `[H, W, 3]`.

    With `crop` it is turned as its camera was held, and the middle square is brought to as many pixels a side, by a
    cubic filter as wide as the pixels that come out.

    Raises:
        DataError: its data are corrupt, or its mode (transparency, 16 bits) is not one that images here have.
    """
    if picture.mode not in MODES:
        raise DataError(f"{name} has colour mode {picture.mode}; save it as 8-bit grey or RGB without transparency")
    try:
        if crop is None:
            return np.asarray(picture.convert(MODES[picture.mode]))
        picture.draft(None, (2 * crop, 2 * crop))  # a JPEG need not be decoded at its full size
        upright = ImageOps.exif_transpose(picture).convert(MODES[picture.mode])
        side = min(upright.size)
        left, top = ((length - side) // 2 for length in upright.size)
        middle = upright.crop((left, top, left + side, top + side))  # first, so that nothing beside it shines in
        return np.asarray(middle.resize((crop, crop), Image.Resampling.BICUBIC))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{name} is corrupt: {error}") from None


def _read_classes(folder: Path, source: str, expected: tuple[str, ...] | None, crop: int | None) -> Images:
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
    return from_arrays(read_pictures(files, crop), np.array(labels), names, source=source)


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_pictures(files: list[Path], crop: int | None = None) -> np.ndarray:
    """Read all files into one array, holding each against the first before any pixels are decoded.

    With `crop` all come out alike: as many pixels a side, and in colour if one of them is.
    """
    shapes = [_shape(path, crop) for path in files]
    first = max(shapes, key=len) if crop else shapes[0]
    odd = next((place for place, shape in enumerate(shapes) if shape != first), None)
    if odd is not None and not crop:
        raise DataError(
            f"images differ in size or channels: {files[0]} is {_words(first)}, {files[odd]} is {_words(shapes[odd])};"
            " bring all of them to one size, or let ?crop=64 behind the data cut the middle of each to 64 pixels"
        )
    images = np.empty((len(files), *first), np.uint8)
    with progress.task("read pictures", 0, len(files)) as show:
        for place, path in enumerate(files):
            with Image.open(path, formats=FORMATS) as picture:
                images[place] = coloured(decode(picture, str(path), crop), len(first))
            show(place + 1)
    return images


def coloured(image: np.ndarray, dimensions: int = 3) -> np.ndarray:
    """Return a grey image `[H, W]` as one of three equal channels where three dimensions are asked for."""
    return image if image.ndim == dimensions else np.repeat(image[:, :, None], 3, axis=2)


def _shape(path: Path, crop: int | None) -> tuple[int, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
                mode = MODES.get(picture.mode, picture.mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}") from None
    if crop:
        width = height = crop
    if width != height:
        raise DataError(
            f"{path} is {width} × {height} pixels; images must be square: crop or pad them first, or let ?crop=64 "
            "behind the data cut the middle of each to 64 pixels"
        )
    return (height, width, 3) if mode == "RGB" else (height, width)


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]} in {'colour' if len(shape) == 3 else 'grey'}"

"""Hugging Face data sets and local Parquet files, through the optional package `datasets`."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attar.data.arrays import from_arrays
from attar.data.captions import TEXT_COLUMNS, UNSORTED, captioned, text_of
from attar.data.constants import BY_NAME
from attar.data.folder import FORMATS, coloured, decode
from attar.data.images import Images
from attar.data.splits import Splits, paired
from attar.errors import DataError, did_you_mean

IMAGE_COLUMNS = ("image", "img", "images", "pixels", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "y")
TRAIN_SPLITS = ("train", "training")
TEST_SPLITS = ("test", "validation", "valid", "val")


def read_hub(name: str, source: str, crop: int | None = None) -> Splits:
    """Read a data set of the Hugging Face hub, or of its local cache.

    Raises:
        DataError: `datasets` is not installed, the hub cannot be reached, or the set has no images with labels.
    """
    datasets = _datasets(source)
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # network, permission, name and format errors of half a dozen packages
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"data '{source}': the hub's data set '{name}' could not be loaded: {reason}") from None
    return from_datasets(loaded, source, name, crop)


def read_parquet(path: Path, source: str, crop: int | None = None) -> Splits:
    """Read one Parquet file, or a folder with `train*.parquet` and `test*.parquet` (or a `data` folder of such files).

    Raises:
        DataError: `datasets` is not installed, no such files, or no column of images or labels in them.
    """
    datasets = _datasets(source)
    if path.is_file():
        return from_datasets(_table(datasets, [path], source), source, crop=crop)
    files = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    parts = {split: [f for f in files if f.name.startswith(split)] for split in (*TRAIN_SPLITS, *TEST_SPLITS)}
    tables = {split: _table(datasets, found, source) for split, found in parts.items() if found}
    if not tables and files:
        tables = {"train": _table(datasets, files, source)}
    if not tables:
        raise DataError(f"data '{source}' needs .parquet files in {path.absolute()}; there are none")
    return from_datasets(tables, source, crop=crop)


def from_datasets(given: Any, source: str = "datasets", name: str = "", crop: int | None = None) -> Splits:
    """Make splits of a `Dataset` or of a mapping of split names to them (a `DatasetDict`).

    With `crop` pictures of any size are brought to as many pixels a side (`attar.data.folder.decode`).

    Raises:
        DataError: no training split, or no column of images or labels.
    """
    if not hasattr(given, "keys"):
        given = {"train": given}
    train_name = next((split for split in TRAIN_SPLITS if split in given), None)
    if train_name is None:
        raise DataError(f"data '{source}' has no training split; it has: {', '.join(given)}")
    train = _images(given[train_name], source, name, None, crop)
    test_name = next((split for split in TEST_SPLITS if split in given), None)
    splits = paired(train, _images(given[test_name], source, name, train.classes, crop) if test_name else None)
    if test_name and test_name != "test":
        return Splits(splits.train, splits.test, f"{source} has no test split: its split '{test_name}' is used")
    return splits


def _datasets(source: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise DataError(f"data '{source}' needs the package 'datasets': install it with pip install 'attar[hf]'")
    import datasets

    return datasets


def _table(datasets: Any, files: list[Path], source: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        # Not through load_dataset, which would copy every file into a cache.
        return datasets.Dataset(pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files]))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"data '{source}': {files[0]} cannot be read as Parquet: {error}") from None


def _images(dataset: Any, source: str, name: str, classes: tuple[str, ...] | None, crop: int | None) -> Images:
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"data '{source}' is a stream that cannot seek, so a stopped run could not go on exactly where it"
            " was; load it without streaming=True, or keep it with save_to_disk and name it arrow:PATH"
        )
    if not len(dataset):
        raise DataError(f"data '{source}' is empty")
    image_column = column_named(dataset, IMAGE_COLUMNS, "images", source)
    if (texts := _texts(dataset, source)) is not None:
        pictures = _stack(dataset.with_format("arrow")[:].column(image_column).to_pylist(), source, crop)
        return captioned(from_arrays(pictures, np.zeros(len(texts), np.int64), [UNSORTED], source=source), texts)
    label_column = column_named(dataset, LABEL_COLUMNS, "labels", source)
    table = dataset.with_format("arrow")[:]  # storage as it is, in the order of the set even where it was shuffled
    raw = table.column(label_column).to_pylist()
    if any(label is None for label in raw):
        raise DataError(f"column '{label_column}' of '{source}' has rows without a label")
    names = classes or tuple(getattr(dataset.features[label_column], "names", None) or ())
    if isinstance(raw[0], str):
        names = names or tuple(sorted(set(raw)))
        if unknown := set(raw) - set(names):
            raise DataError(f"'{source}' has labels that the training split lacks: {', '.join(sorted(unknown)[:5])}")
        raw = [names.index(label) for label in raw]
    pixels = _stack(table.column(image_column).to_pylist(), source, crop)
    mean, std = BY_NAME.get(name.rsplit("/", maxsplit=1)[-1].lower(), (None, None))
    if mean and (pixels.ndim == 3) != (len(mean) == 1):
        mean = std = None
    return from_arrays(pixels, raw, names or None, source=source, mean=mean, std=std)


def _texts(dataset: Any, source: str) -> list[str] | None:
    """Return the captions of a set that has a column of them and none of labels."""
    columns = dataset.column_names
    labelled = any(name in LABEL_COLUMNS or type(dataset.features[name]).__name__ == "ClassLabel" for name in columns)
    column = next((name for name in TEXT_COLUMNS if name in columns), None)
    if labelled or column is None:
        return None
    told = dataset.with_format("arrow")[:].column(column).to_pylist()
    return [text_of(text, f"row {row} of '{source}'") for row, text in enumerate(told)]


def column_named(dataset: Any, known: tuple[str, ...], what: str, source: str) -> str:
    """Return the column of images or labels: the only one typed so, else the first that has a known name.

    Raises:
        DataError: there is none.
    """
    columns: Iterable[str] = dataset.column_names
    kind = "Image" if what == "images" else "ClassLabel"
    typed = [column for column in columns if type(dataset.features[column]).__name__ == kind]
    named = [column for column in known if column in columns]
    if len(typed) == 1:
        return typed[0]
    if named:
        return named[0]
    hint = did_you_mean(known[0], columns)
    raise DataError(f"data '{source}' has no column of {what} ({', '.join(known)}); it has {', '.join(columns)}{hint}")


def _stack(rows: list[Any], source: str, crop: int | None) -> np.ndarray:
    """Stack rows that are encoded pictures (bytes, or {bytes, path}) or nested lists of numbers."""
    images: list[np.ndarray] = []
    for place, row in enumerate(rows):
        name = f"image {place} of '{source}'"
        data = (row.get("bytes") or Path(row.get("path") or "")) if isinstance(row, dict) else row
        if isinstance(data, bytes | Path):
            try:
                with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as picture:
                    image = decode(picture, name, crop)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(f"{name} cannot be read as a picture: {error}") from None
        elif isinstance(data, list) and crop:
            raise DataError(f"{name} is numbers, and ?crop={crop} is for encoded pictures; bring it to one size first")
        elif isinstance(data, list):
            image = _numbers(data, name)
        else:
            raise DataError(f"{name} is neither an encoded picture nor numbers; got {type(data).__name__}")
        if images and image.shape != images[0].shape and not crop:
            raise DataError(
                f"images of '{source}' differ: the first is {images[0].shape}, number {place} {image.shape}"
            )
        images.append(image)
    dimensions = max(image.ndim for image in images)
    return np.stack([coloured(image, dimensions) for image in images])


def _numbers(values: list[Any], name: str) -> np.ndarray:
    try:
        image = np.array(values)
    except ValueError:
        raise DataError(f"{name} is a ragged list of numbers") from None
    # Arrow hands out plain integers: what fits into a byte was one.
    if image.dtype.kind == "i" and image.size and image.min() >= 0 and image.max() <= 255:
        return image.astype(np.uint8)
    return image

"""Where images come from: `load` reads a URI, `resolve` takes anything a user may hand over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from attar.data.arrays import from_arrays, measure, pool
from attar.data.images import Images
from attar.data.splits import Splits, drawn_test, paired
from attar.data.uri import NAMED, POINTS, DataURI, existing, parse
from attar.data.whitening import ZCA
from attar.errors import DataError


def load(uri: str) -> Splits:
    """Load the images that a URI names.

    `fashion-mnist-mini` (ships with attar), `fashion-mnist`, `digits`, `emoji`, `photo-patches` (pictures that other
    packages ship), `folder:PATH`, `idx:PATH`, `npz:PATH`, `hf:NAME`, `parquet:PATH`; `?size=14` average-pools to
    14 × 14 in float, `?zca` whitens by a map fitted on the training images, `?crop=64` brings the middle of pictures of
    any size to 64 × 64 as they are read (`folder`, `hf`, `parquet`). Read from the disk as needed: `arrow:PATH`,
    `parquet:PATH?stream`, `wds:PATH`.

    Raises:
        DataError: unknown, missing, empty or corrupt data; the message says what was looked for and where.
    """
    parsed = parse(uri)
    if parsed.kind in POINTS:
        raise DataError(f"data '{uri}' are points, for samplers such as diffusion; images are {', '.join(NAMED)} …")
    try:
        splits = (_stream if parsed.stream else _READERS[parsed.kind])(parsed)
    except OSError as error:  # a file or folder that may not be read, or that went away meanwhile
        raise DataError(f"data '{uri}' cannot be read: {error}") from None
    return splits if parsed.stream else _with_options(splits, parsed)


def resolve(given: Any) -> Splits:
    """Turn whatever stands for data into splits.

    Takes a URI, `Splits`, `Images`, a pair (images, labels), a Hugging Face `Dataset` or `DatasetDict`, a torch
    `Dataset` of (image, label) pairs, or a mapping with "train" and "test" of any of these but the first two. Where
    there is no test split, a stratified sixth is drawn and `note` says so.

    Raises:
        DataError: it is none of these, or its contents do not make labelled images.
    """
    if isinstance(given, Splits):
        return given
    if isinstance(given, str):
        return load(given)
    if _from_hugging_face(given) or (isinstance(given, Mapping) and any(map(_from_hugging_face, given.values()))):
        from attar.data import hub

        return hub.from_datasets(given)
    if isinstance(given, Mapping):
        if "train" not in given or not set(given) <= {"train", "test"}:
            raise DataError(f"a mapping of splits has 'train' and may have 'test'; got {', '.join(map(str, given))}")
        test = _images(given["test"]) if "test" in given else None
        return paired(_images(given["train"]), test)
    return drawn_test(_images(given))


def _with_options(splits: Splits, uri: DataURI) -> Splits:
    train, test = splits.train, splits.test
    changes: dict[str, Any] = {"source": uri.text}
    if uri.size and uri.size != train.size:
        # Pooling lowers the contrast: published constants of the full size would leave pixels short of unit variance.
        pooled = pool(train.pixels, uri.size, uri.kind)
        mean, std = measure(pooled)
        test = dataclasses.replace(test, pixels=pool(test.pixels, uri.size, uri.kind))
        train = dataclasses.replace(train, pixels=pooled)
        changes |= {"mean": mean, "std": std}
    if uri.zca:
        changes["whitening"] = ZCA.fit(train.pixels)
    return Splits(dataclasses.replace(train, **changes), dataclasses.replace(test, **changes), splits.note)


def _from_hugging_face(given: Any) -> bool:
    return type(given).__module__.split(".", 1)[0] == "datasets"  # without importing an optional package


def _images(given: Any) -> Images:
    """Make images of `Images`, of a pair (images, labels), or of a sequence of pairs (image, label)."""
    if isinstance(given, Images):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return from_arrays(*given)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        return _from_pairs(given)
    raise DataError(
        f"cannot read data from a {type(given).__name__}; give a URI, (images, labels), or a Dataset of pairs"
    )


def _from_pairs(dataset: Any) -> Images:
    import numpy as np

    images, labels = [], []
    for index in range(len(dataset)):
        pair = dataset[index]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"item {index} of the {type(dataset).__name__} is not a pair (image, label)")
        images.append(np.asarray(pair[0]))
        labels.append(pair[1])
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DataError(
            f"images of the {type(dataset).__name__} have mixed shapes: {sorted(shapes)[:3]}; make them equal"
        )
    if not images:
        raise DataError(f"the {type(dataset).__name__} is empty")
    return from_arrays(np.stack(images), np.asarray(labels), source=type(dataset).__name__)


def _embedded(uri: DataURI) -> Splits:
    from attar.data.embedded import fashion_mnist_mini

    return fashion_mnist_mini()


def _fashion_mnist(uri: DataURI) -> Splits:
    from attar.data.idx import fashion_mnist

    return fashion_mnist()


def _digits(uri: DataURI) -> Splits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Grey levels 0 … 16 become 0 … 255: exact at both ends, and the order of levels is kept.
    pixels = (bunch.images * 255 / 16).round().astype("uint8")
    return drawn_test(from_arrays(pixels, bunch.target, [str(n) for n in range(10)], source="digits"))


def _emoji(uri: DataURI) -> Splits:
    from attar.data.emoji import read_emoji

    return read_emoji()


def _photo_patches(uri: DataURI) -> Splits:
    from attar.data.photo_patches import read_photo_patches

    return read_photo_patches()


def _folder(uri: DataURI) -> Splits:
    from attar.data.folder import read_folder

    return read_folder(existing(uri), uri.text, uri.crop)


def _idx(uri: DataURI) -> Splits:
    from attar.data.idx import read_idx_folder

    return read_idx_folder(existing(uri), uri.text)


def _npz(uri: DataURI) -> Splits:
    from attar.data.npz import read_npz

    return read_npz(existing(uri), uri.text)


def _hub(uri: DataURI) -> Splits:
    from attar.data.hub import read_hub

    return read_hub(uri.location, uri.text, uri.crop)


def _parquet(uri: DataURI) -> Splits:
    from attar.data.hub import read_parquet

    return read_parquet(existing(uri), uri.text, uri.crop)


def _stream(uri: DataURI) -> Splits:
    from attar.data.streams.opening import open_stream

    return open_stream(uri)


_READERS: dict[str, Callable[[DataURI], Splits]] = {
    "fashion-mnist-mini": _embedded,
    "fashion-mnist": _fashion_mnist,
    "digits": _digits,
    "emoji": _emoji,
    "photo-patches": _photo_patches,
    "folder": _folder,
    "idx": _idx,
    "npz": _npz,
    "hf": _hub,
    "parquet": _parquet,
}

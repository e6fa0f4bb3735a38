"""From a URI to splits of streamed images."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attar import files
from attar.data.arrays import class_names
from attar.data.hub import TEST_SPLITS, TRAIN_SPLITS
from attar.data.splits import HELD_OUT, HELD_OUT_SEED, Splits
from attar.data.streams.pictures import Look
from attar.data.streams.stored import Shards, StoredPixels, StreamedImages
from attar.data.streams.tables import ArrowBlocks, RowGroups
from attar.data.streams.webdataset import TarShards, shard_paths
from attar.data.uri import DataURI, existing
from attar.errors import DamagedFile, DataError

MEASURED = 10_000  # images that mean and standard deviation are measured on at most, drawn from a fixed seed …
MEASURED_VALUES = 1 << 30  # … or as many as have this many values, where they are large …
MEASURED_LEAST = 1_000  # … but no fewer than these
MEASURED_SEED = 0
MEASURED_BYTES = 1 << 21  # 2 MiB of pictures are measured at a time


def open_stream(uri: DataURI) -> Splits:
    """Open `arrow:PATH`, `parquet:PATH?stream` or `wds:PATH`; pictures are read when they are asked for.

    Raises:
        DataError: missing, damaged or unlabelled data, data that cannot be sought in, or `?zca`.
    """
    if uri.zca:
        raise DataError(f"data '{uri.text}' cannot be whitened: the map needs all pixels in memory; drop ?zca")
    if uri.kind == "wds":
        parts: Mapping[str, Shards] = _tars(uri)
    else:
        if importlib.util.find_spec("datasets") is None:
            raise DataError(f"data '{uri.text}' needs the package 'datasets': install it with pip install 'attar[hf]'")
        parts = _tables(uri)
    train = next(parts[name] for name in TRAIN_SPLITS if name in parts)
    tests = [name for name in TEST_SPLITS if name in parts]
    images = _images(train, uri, None)
    if not tests:
        rest, test = images.split(HELD_OUT, HELD_OUT_SEED)
        note = f"{uri.text} has no test split: {len(test)} of its {len(images)} images drawn, seed {HELD_OUT_SEED}"
        return _measured(rest, test, note)
    note = "" if tests[0] == "test" else f"{uri.text} has no test split: its split '{tests[0]}' is used"
    test = _images(parts[tests[0]], uri, images)
    return _measured(images, test, note)


def measure_sample(pixels: StoredPixels) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation `[C]` of pixels in [0, 1], of all images or of a sample of a large set.

    As `arrays.measure`, which would read everything; what was measured is kept with the indexes.
    """
    count = min(len(pixels), MEASURED, max(MEASURED_LEAST, MEASURED_VALUES // pixels[0].numel()))
    name = hashlib.sha256(f"constants 1 {count} {pixels.content}".encode()).hexdigest()
    kept = files.home() / "indexes" / f"{name[:32]}.json"
    if kept.exists():
        with contextlib.suppress(DamagedFile, KeyError, TypeError, ValueError):
            found = files.read_json(kept)
            return torch.tensor(found["mean"]), torch.tensor(found["std"])
    rng = torch.Generator().manual_seed(MEASURED_SEED)
    chosen = torch.randperm(len(pixels), generator=rng)[:count].sort().values
    mean, std = _measure(pixels, chosen)
    files.write_json(kept, {"mean": mean.tolist(), "std": std.tolist()})
    return mean, std


def _measure(pixels: StoredPixels, chosen: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.zeros(pixels.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    levels = torch.arange(256, dtype=torch.float64) / 255
    for part in chosen.split(pixels.look.part(MEASURED_BYTES)):
        some = pixels[part]
        if pixels.dtype == torch.uint8:  # counting levels is exact, and thirty times faster than arithmetic in float64
            counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in some.unbind(1)])
            total += counts.double() @ levels
            squares += counts.double() @ levels.square()
        else:
            total += some.double().sum((0, 2, 3))
            squares += some.double().square().sum((0, 2, 3))
    values = len(chosen) * pixels.shape[2] * pixels.shape[3]
    mean = total / values
    variance = (squares / values - mean.square()).clamp_min((1 / 255) ** 2)
    return mean.float(), variance.sqrt().float()


def _measured(train: Any, test: Any, note: str) -> Splits:
    mean, std = measure_sample(train.pixels)
    return Splits(replace(train, mean=mean, std=std), replace(test, mean=mean, std=std), note)


def _images(shards: Shards, uri: DataURI, like: StreamedImages | None) -> StreamedImages:
    labels = torch.cat([index.labels for index in shards.indexes])
    shapes = dict.fromkeys(shape for index in shards.indexes for shape in index.shapes)
    look = Look.of(list(shapes), uri.size, uri.text)
    told = shards.indexes[0].classes or None
    if like is not None:
        if like.pixels.look != look:
            raise DataError(f"training and test images of {uri.text} differ in shape: {like.pixels.look}, {look}")
        if told and told != like.classes:
            raise DataError(f"training and test images of {uri.text} have different classes: {like.classes}, {told}")
        told = like.classes
    names = class_names(labels, told, uri.text)
    ones = torch.ones(look.stored[2])
    return StreamedImages(StoredPixels(shards, look), labels, names, ones / 2, ones, source=uri.text)


def _tars(uri: DataURI) -> dict[str, Shards]:
    """Sort a folder's shards into splits by their names; anything else named is the training split."""
    folder = Path(uri.location).expanduser()
    if folder.is_dir():
        named = {name: folder / name for name in (*TRAIN_SPLITS, *TEST_SPLITS) if (folder / name).is_dir()}
        found = {name: shard_paths(str(path), uri.text) for name, path in named.items()}
        found = found or by_split(shard_paths(str(folder), uri.text))
    else:
        found = {"train": shard_paths(uri.location, uri.text)}
    _has_train(found, uri)
    return {name: TarShards(paths, uri.text) for name, paths in found.items()}


def _tables(uri: DataURI) -> dict[str, Shards]:
    import pyarrow

    path = existing(uri)
    try:
        if uri.kind == "parquet":
            found_files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
            if not found_files:
                raise DataError(f"data '{uri.text}' needs .parquet files in {path.absolute()}; there are none")
            found: Mapping[str, Any] = {"train": found_files} if path.is_file() else by_split(found_files)
            make: Callable[[Any, str], Shards] = RowGroups
        else:
            found, make = _arrow_sets(path, uri), ArrowBlocks
        _has_train(found, uri)
        return {name: make(part, uri.text) for name, part in found.items()}
    except (pyarrow.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        # `datasets` follows what the files say of themselves, and stumbles over what is not so
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"data '{uri.text}': {path} cannot be read as {uri.kind}: {reason}") from None


def _arrow_sets(path: Path, uri: DataURI) -> dict[str, Any]:
    import datasets

    if path.is_file():
        return {"train": datasets.Dataset.from_file(str(path))}
    loaded = datasets.load_from_disk(str(path), keep_in_memory=False)
    found = {str(name): part for name, part in loaded.items()} if hasattr(loaded, "items") else {"train": loaded}
    for file in (file for part in found.values() for file in part.cache_files):
        if not Path(file["filename"]).resolve().is_relative_to(path.resolve()):
            raise DataError(f"data '{uri.text}' refers to {file['filename']}, outside of its own folder")
    return found


def by_split(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Sort files into splits by the beginning of their names; files that name no split are all training data."""
    names = (*TRAIN_SPLITS, *TEST_SPLITS)
    found: dict[str, list[Path]] = {}
    for path in paths:
        split = next((name for name in sorted(names, key=len, reverse=True) if path.name.startswith(name)), None)
        if split is None:
            return {"train": list(paths)}
        found.setdefault(split, []).append(path)
    return found


def _has_train(found: Mapping[str, Any], uri: DataURI) -> None:
    if not any(name in found for name in TRAIN_SPLITS):
        raise DataError(f"data '{uri.text}' has no training split; it has: {', '.join(found)}")
    for name, part in found.items():
        if not len(part):
            raise DataError(f"data '{uri.text}': split '{name}' is empty")

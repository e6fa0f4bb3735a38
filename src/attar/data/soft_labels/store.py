"""The store as it lies on disk, and reading it: a head, and shards of records, each with a manifest.

    head.json            what every row is: codec, teacher, data, views; with its own digest
    shard-00000.rows     records, one behind the other, mapped into memory
    shard-00000.json     how many of them count, and their SHA-256; renamed into place after the rows are on the disk

Rows are in ascending order of (view, sample), so a key is found by bisection and no index is kept. No name and no size
that a file claims is believed: names are made from shard numbers, sizes are held against the file before it is mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from attar import files
from attar.data.soft_labels.codec import Codec
from attar.data.soft_labels.views import Views
from attar.errors import AttarError, DamagedFile, DataError
from attar.spec import digest, spec, to_json

FORMAT = 1
MAX_SAMPLES, MAX_VIEWS = 2**40, 2**24  # one 64-bit key holds both
SHARD_BYTES = 64 * 2**20  # about; a part of the format: stores whose head has no shard_rows are cut by it
MAX_JSON = 2**20  # bytes of a head or a manifest; ours have under 2,000
MAX_SHARDS = 100_000


@spec
class Head:
    """What every row of a store is; two stores with the same head and the same labelling have the same bytes."""

    codec: Codec
    teacher: str = Field(max_length=200)  # fingerprint of the teacher
    data: str = Field(max_length=200)  # fingerprint of the data that sample ids count in
    samples: int = Field(ge=1, le=MAX_SAMPLES)  # ids are in [0, samples): images, or positions of a text
    views: Views | None = None  # none: the samples themselves
    views_key: int = Field(0, ge=0, lt=2**63)  # seed of the views
    shard_rows: int = Field(0, ge=0, le=2**32)  # rows of every shard but the last; 0: as many as fill 64 MiB

    @property
    def rows_per_shard(self) -> int:
        """Rows of a full shard."""
        return self.shard_rows or max(1, SHARD_BYTES // self.codec.record.itemsize)

    def keys(self, samples: Tensor, views: Tensor) -> np.ndarray:
        """Return uint64 keys `[n]`, view · 2⁴⁰ + sample, in whose order rows are stored.

        Raises:
            DataError: ids of another shape, or out of range: their keys would be those of other rows.
        """
        if samples.dim() != 1 or samples.shape != views.shape:
            raise DataError(f"samples and views are [n] each; got {list(samples.shape)} and {list(views.shape)}")
        for name, ids, end in (("sample", samples, self.samples), ("view", views, MAX_VIEWS)):
            if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < end):
                worst = int(ids.max()) if int(ids.max()) >= end else int(ids.min())
                raise DataError(f"{name} {worst} is not in this store's range, 0 to {end - 1}")
        return (views.numpy().astype(np.uint64) << np.uint64(40)) | samples.numpy().astype(np.uint64)


class SoftLabelStore:
    """A store opened for reading.

    Args:
        folder: where it lies.
        verify: hold every shard against its checksum first (one pass over the bytes); sizes are always checked.

    Raises:
        AttarError: there is no store, or it is of a newer format.
        DamagedFile: something does not fit its digest, its size or its head.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.head = read_head(self.folder)
        self._maps: dict[int, np.ndarray] = {}
        self._manifests = read_manifests(self.folder, self.head)
        self._rows: int = sum(manifest["rows"] for manifest in self._manifests)
        for shard, manifest in enumerate(self._manifests if verify else []):
            if _sha256(shard_path(self.folder, shard), manifest["rows"] * self._record.itemsize) != manifest["sha256"]:
                raise DamagedFile(
                    f"{shard_path(self.folder, shard)} does not match its checksum: it was changed or damaged; "
                    "label the data again"
                )

    def __len__(self) -> int:
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a worker process maps the files itself: maps would travel as copies

    @property
    def _record(self) -> np.dtype[Any]:
        return self.head.codec.record

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the head and the checksums of the shards: equal stores have equal ones."""
        return digest({"head": to_json(self.head), "shards": [manifest["sha256"] for manifest in self._manifests]})

    @property
    def bytes(self) -> int:
        """Bytes on disk, head and manifests included."""
        names = [shard_path(self.folder, shard) for shard in range(len(self._manifests))]
        rows = len(self) * self._record.itemsize
        return (
            rows + sum(path.with_suffix(".json").stat().st_size for path in names) + _head(self.folder).stat().st_size
        )

    def records(self, rows: Tensor) -> np.ndarray:
        """Return the records `[n]` of row numbers `[n]`, in that order.

        Raises:
            DataError: a row number that does not exist.
        """
        return self._read(rows.numpy())

    def keys(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples and views `[n]` of row numbers `[n]`."""
        return split_keys(self._read(rows.numpy(), "key"))

    def find(self, samples: Tensor, views: Tensor) -> Tensor:
        """Return the row numbers `[n]` of (sample, view) pairs.

        Raises:
            DataError: a pair that was never labelled, or out of range.
        """
        wanted = self.head.keys(samples, views)
        low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(self), np.int64)
        while (low < high).any():  # bisection of all pairs at once: maps are touched where they are asked, no more
            middle = np.minimum((low + high) // 2, max(len(self) - 1, 0))
            below = self._read(middle, "key") < wanted
            open_ = low < high
            low, high = np.where(open_ & below, middle + 1, low), np.where(open_ & ~below, middle, high)
        rows = torch.from_numpy(low)
        missing = low >= len(self)
        missing[~missing] = self._read(low[~missing], "key") != wanted[~missing]
        if missing.any():
            sample, view = int(samples[missing.argmax()]), int(views[missing.argmax()])
            raise DataError(f"{self.folder} holds no label of sample {sample} in view {view}; label it first")
        return rows

    def probabilities(self, rows: Tensor, *, temperature: float = 1.0, prior: Tensor | None = None) -> Tensor:
        """Return float32 probabilities `[n, classes]` of row numbers `[n]`; see `Codec.decode` for the options."""
        return self.head.codec.decode(self.records(rows), temperature=temperature, prior=prior)

    def link_to(self, folder: Path) -> None:
        """Put the store into another folder, by hard links where the file system has them, else by copying."""
        folder.mkdir(parents=True, exist_ok=True)
        shards = [shard_path(self.folder, shard) for shard in range(len(self._manifests))]
        for path in [_head(self.folder), *shards, *(shard.with_suffix(".json") for shard in shards)]:
            try:
                os.link(path, folder / path.name, follow_symlinks=False)
            except OSError:
                shutil.copyfile(path, folder / path.name, follow_symlinks=False)

    def _read(self, rows: np.ndarray, field: str | None = None) -> np.ndarray:
        """Return the records of rows `[n]`, or one field of them."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            wrong = int(rows.max() if rows.min() >= 0 else rows.min())
            raise DataError(f"rows of {self.folder} are numbered 0 to {len(self) - 1}; got {wrong}")
        out = np.empty(len(rows), self._record if field is None else self._record[field])
        shards, places = np.divmod(rows, self.head.rows_per_shard)
        for shard in np.unique(shards):
            picked = shards == shard
            mapped = self._shard(int(shard))
            out[picked] = (mapped if field is None else mapped[field])[places[picked]]
        return out

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            rows = self._manifests[shard]["rows"]
            self._maps[shard] = np.memmap(shard_path(self.folder, shard), self._record, mode="r", shape=(rows,))
        return self._maps[shard]


def split_keys(keys: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return samples and views, int64 `[n]`, of keys."""
    samples = keys & np.uint64(MAX_SAMPLES - 1)
    return torch.from_numpy(samples.astype(np.int64)), torch.from_numpy((keys >> np.uint64(40)).astype(np.int64))


def shard_path(folder: Path, shard: int) -> Path:
    """Return where the records of a shard lie; the manifest lies beside them with the suffix .json."""
    return folder / f"shard-{shard:05d}.rows"


def write_head(folder: Path, head: Head) -> None:
    """Write the head, whole or not at all."""
    content = {"kind": "soft-label-store", "format": FORMAT, **to_json(head)}
    files.write_json(_head(folder), {**content, "digest": digest(content)})


def read_head(folder: Path) -> Head:
    """Read the head of a store; see `SoftLabelStore` for what is raised."""
    if not _head(folder).exists():
        raise AttarError(f"{folder} holds no soft-label store (no head.json); name the folder that labelling wrote")
    content = _read(_head(folder))
    if content.pop("kind", None) != "soft-label-store" or not isinstance(version := content.pop("format", None), int):
        raise DamagedFile(f"{_head(folder)} does not describe a soft-label store")
    if version > FORMAT:
        raise AttarError(f"{folder} has format {version}, newer than {FORMAT}: update attar to read it")
    try:
        return TypeAdapter(Head).validate_python(content)
    except (ValidationError, RecursionError) as error:
        raise DamagedFile(f"{_head(folder)} does not describe a soft-label store: {error}") from None


def read_manifests(folder: Path, head: Head) -> list[dict[str, Any]]:
    """Read the manifests of all shards and hold them against the files; see `SoftLabelStore` for what is raised."""
    manifests: list[dict[str, Any]] = []
    record = head.codec.record.itemsize
    while (path := shard_path(folder, len(manifests))).with_suffix(".json").exists():
        manifest = _read(path.with_suffix(".json"))
        rows, checksum = manifest.get("rows"), manifest.get("sha256")
        if type(rows) is not int or not 0 < rows <= head.rows_per_shard or not isinstance(checksum, str):
            raise DamagedFile(
                f"{path.with_suffix('.json')} does not describe a shard of 1 to {head.rows_per_shard} rows"
            )
        if manifests and manifests[-1]["rows"] != head.rows_per_shard:
            raise DamagedFile(f"shard {len(manifests) - 1} of {folder} is not full, but another follows it")
        if _regular_size(path) < rows * record:
            raise DamagedFile(
                f"{path} is shorter than the {rows} rows of {record} bytes it should hold: it was truncated"
            )
        manifests.append(manifest)
        if len(manifests) > MAX_SHARDS:
            raise DamagedFile(f"{folder} has more than {MAX_SHARDS} shards")
    return manifests


def is_leftover(path: Path) -> bool:
    """Say whether a file is what a writer that was killed while it replaced one of a store's files left aside."""
    return re.fullmatch(r"\.(head\.json|shard-\d{5}\.(rows|json))\.\d+\.tmp", path.name) is not None


def shard_numbers(folder: Path) -> list[int]:
    """Return the numbers of all shard files in a folder, those that do not count included."""
    found = (re.fullmatch(r"shard-(\d{5})\.(rows|json)", path.name) for path in folder.iterdir())
    return sorted({int(match[1]) for match in found if match})


def _head(folder: Path) -> Path:
    return folder / "head.json"


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object that carries the digest of its own content."""
    if _regular_size(path) > MAX_JSON:
        raise DamagedFile(f"{path} has more than {MAX_JSON} bytes, which no head or manifest needs")
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.pop("digest", None) != digest(content):
            raise DamagedFile(f"{path} does not match its own digest: it was changed or damaged; label the data again")
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedFile(f"{path} is not readable as JSON ({error})") from None
    return content


def _regular_size(path: Path) -> int:
    """Return the size of a file; a link, a device or a folder in its place is refused."""
    try:
        info = path.lstat()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(info.st_mode):
        raise DamagedFile(f"{path} is not a plain file; a store holds no links")
    return info.st_size


def _sha256(path: Path, length: int) -> str:
    return hash_prefix(path, length).hexdigest()


def hash_prefix(path: Path, length: int) -> hashlib._Hash:
    """Return the SHA-256 state over the first `length` bytes of a file."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0 and (part := file.read(min(length, 2**20))):
            state.update(part)
            length -= len(part)
    return state

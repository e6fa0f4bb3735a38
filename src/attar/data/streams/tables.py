"""Arrow and Parquet tables of encoded pictures, read block by block through the optional package `datasets`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attar.data.hub import IMAGE_COLUMNS, LABEL_COLUMNS, column_named
from attar.data.streams.index import Content, Index, cached
from attar.data.streams.pictures import LARGEST, shape_of
from attar.errors import DataError

ARROW_BLOCK = 1024  # rows that count as one shard of an Arrow set; being memory-mapped, it has no shards of its own
GROUP_BYTES = 1 << 28  # the largest row group that is read, unpacked: 256 MiB
CACHE_BYTES = 1 << 27  # row groups that are held at a time: 128 MiB, or one


class ArrowBlocks:
    """A memory-mapped `datasets.Dataset`; blocks of `ARROW_BLOCK` rows are its shards.

    Raises:
        DataError: no columns of pictures and labels, or damaged tables.
    """

    window = 16

    def __init__(self, dataset: Any, source: str) -> None:
        self.source = source
        if not len(dataset):
            raise DataError(f"data '{source}' has no rows")
        self.image = column_named(dataset, IMAGE_COLUMNS, "images", source)
        self.label = column_named(dataset, LABEL_COLUMNS, "labels", source)
        self.dataset = dataset.with_format("arrow")
        paths = [Path(file["filename"]) for file in dataset.cache_files]
        # A set that was shuffled or filtered carries a mapping of rows, which its files do not tell apart.
        self.index = cached(f"arrow {dataset._fingerprint}", paths, self._index) if paths else self._index()
        self.indexes = split_index(
            self.index, [ARROW_BLOCK] * (len(dataset) // ARROW_BLOCK) + [len(dataset) % ARROW_BLOCK]
        )

    def read(self, shard: int, places: Sequence[int]) -> list[bytes]:
        """Return the encoded pictures at `places` of a block."""
        rows = [shard * ARROW_BLOCK + place for place in places]
        return encoded(self.dataset[rows].column(self.image), f"block {shard} of '{self.source}'")

    def _index(self) -> Index:
        self.dataset.data.table.validate(full=True)  # offsets of a damaged file would be followed anywhere
        labels = self.dataset.select_columns([self.label])[:].column(self.label).to_pylist()
        names = getattr(self.dataset.features[self.label], "names", None)
        starts = range(0, len(self.dataset), ARROW_BLOCK // 8)
        columns = (self.dataset[start : start + ARROW_BLOCK // 8].column(self.image) for start in starts)
        return index_table(labels, names, columns, self.source)


class RowGroups:
    """Parquet files, read one row group at a time; a few row groups are held.

    Raises:
        DataError: no columns of pictures and labels, damaged files, or row groups too large to be held.
    """

    def __init__(self, paths: Sequence[Path], source: str) -> None:
        import datasets
        import pyarrow.parquet

        self.paths, self.source = tuple(paths), source
        self.groups: list[tuple[int, int]] = []
        sizes, largest = [], 1
        for number, path in enumerate(self.paths):
            about = pyarrow.parquet.read_metadata(path)
            for group in range(about.num_row_groups):
                rows = about.row_group(group)
                if not rows.num_rows:
                    continue  # some writers leave one for every part, empty ones too
                largest = max(largest, rows.total_byte_size)
                self.groups.append((number, group))
                sizes.append(rows.num_rows)
        if largest > GROUP_BYTES:
            raise DataError(
                f"data '{source}' has a row group of {largest >> 20} MiB, too large to be held; write the files with"
                " smaller ones (row_group_size=1000) or drop ?stream"
            )
        self.window = max(1, min(16, CACHE_BYTES // largest))
        self.features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(self.paths[0]))
        head: Any = SimpleNamespace(column_names=list(self.features), features=self.features)
        self.image = column_named(head, IMAGE_COLUMNS, "images", source)
        self.label = column_named(head, LABEL_COLUMNS, "labels", source)
        self._held: OrderedDict[int, Any] = OrderedDict()
        self.index = cached("parquet", self.paths, self._index)
        self.indexes = split_index(self.index, sizes)

    def read(self, shard: int, places: Sequence[int]) -> list[bytes]:
        """Return the encoded pictures at `places` of a row group."""
        if shard not in self._held:
            while len(self._held) >= self.window:
                self._held.popitem(last=False)
            self._held[shard] = self._group(shard, self.image)
        self._held.move_to_end(shard)
        return encoded(self._held[shard].take(list(places)), f"row group {shard} of '{self.source}'")

    def _group(self, shard: int, column: str) -> Any:
        import pyarrow.parquet

        number, group = self.groups[shard]
        try:
            with pyarrow.parquet.ParquetFile(self.paths[number]) as file:
                return file.read_row_group(group, columns=[column]).column(column)
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise DataError(f"{self.paths[number]} cannot be read as Parquet: {error}") from None

    def _index(self) -> Index:
        shards = range(len(self.groups))
        labels = [label for shard in shards for label in self._group(shard, self.label).to_pylist()]
        names = getattr(self.features[self.label], "names", None)
        return index_table(labels, names, (self._group(shard, self.image) for shard in shards), self.source)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": OrderedDict()}  # what is held does not travel to another process


def encoded(column: Any, name: str) -> list[bytes]:
    """Return the encoded pictures of a column of bytes, or of {"bytes", "path"} as `datasets` stores them.

    Raises:
        DataError: rows without bytes: numbers, or paths of files elsewhere, which are never followed.
    """
    found = []
    for row in column.to_pylist():
        data = row.get("bytes") if isinstance(row, dict) else row
        if not isinstance(data, bytes):
            raise DataError(
                f"{name} does not hold encoded pictures; streams take columns of PNG, JPEG or WebP bytes. Smaller sets"
                " of numbers or paths can be read into memory: hf:NAME, parquet:PATH, folder:PATH"
            )
        if len(data) > LARGEST:
            raise DataError(f"{name} holds a picture of {len(data)} bytes; at most {LARGEST} are read")
        found.append(data)
    return found


def index_table(labels: list[Any], names: Sequence[str] | None, columns: Iterator[Any], source: str) -> Index:
    """Read a table of labelled pictures once, column part by column part.

    Raises:
        DataError: no rows, rows without a label, labels of another type, or a picture that cannot be read.
    """
    if not labels:
        raise DataError(f"data '{source}' has no rows")
    if any(label is None for label in labels):
        raise DataError(f"data '{source}' has rows without a label")
    if isinstance(labels[0], str):
        names = sorted({str(label) for label in labels})
        places = {name: place for place, name in enumerate(names)}
        labels = [places[str(label)] for label in labels]
    if not all(isinstance(label, int) and abs(label) < 2**62 for label in labels):
        raise DataError(f"labels of '{source}' must be whole numbers or texts")
    content, row = Content(), 0
    for column in columns:
        if row + len(column) > len(labels):
            raise DataError(f"data '{source}' has more pictures than labels")
        for data in encoded(column, f"data '{source}'"):
            content.add(labels[row], data, shape_of(data, f"image {row} of '{source}'"))
            row += 1
    if row != len(labels):
        raise DataError(f"data '{source}' has {row} pictures and {len(labels)} labels")
    empty = torch.empty(0, dtype=torch.int64)
    numbers = torch.tensor(labels, dtype=torch.int64)
    return Index(numbers, tuple(content.shapes), content.digest.hexdigest(), tuple(names or ()), empty, empty)


def split_index(index: Index, sizes: Sequence[int]) -> list[Index]:
    """Return the index of a table as one index a shard; its content digest stays that of the whole.

    Raises:
        DataError: the shards claim more or fewer rows than were read.
    """
    if sum(sizes) != len(index.labels):
        raise DataError(f"a table of {len(index.labels)} rows claims {sum(sizes)}: its files are damaged")
    parts: Sequence[Tensor] = index.labels.split([size for size in sizes if size])  # a last block may have no rows
    return [Index(part, index.shapes, index.content, index.classes, index.offsets, index.lengths) for part in parts]

"""Pixels that lie on the disk and read like a tensor, and `StreamedImages`, which is `Images` over them."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from attar.data.images import Images
from attar.data.plans import DataPlan, EpochPlan, ShardPlan
from attar.data.streams.index import Index
from attar.data.streams.pictures import Look
from attar.errors import DataError

PART_BYTES = 1 << 24  # 16 MiB of pictures are decoded at a time on their way to where they were asked for
_READING = threading.Lock()  # shards keep few files open, or parts in memory: what one thread reads none may close


class Shards(Protocol):
    """Encoded pictures in shards that can be sought in: tar archives, blocks of an Arrow table, Parquet row groups."""

    indexes: list[Index]
    window: int
    source: str

    def read(self, shard: int, places: Sequence[int]) -> list[bytes]:
        """Return the encoded pictures at `places` of a shard."""
        ...


class StoredPixels:
    """Pixels `[N, C, H, W]` on the disk: what is indexed is read, decoded and handed out as a tensor.

    Holds one number an image and no pixels. It offers what `Images` and its users ask of their pixels: `shape`,
    `dtype`, `device`, `len`, indexing by a number, a slice or a tensor of any shape, `split` and `to`.

    Args:
        shards: where the pictures lie.
        look: their shape, and the size they are pooled to.
        rows: `[N]` which pictures of the shards, counted over all of them; none means all.
        device: where what is read goes.
    """

    ndim = 4

    def __init__(self, shards: Shards, look: Look, rows: Tensor | None = None, device: Any = "cpu") -> None:
        self.shards, self.look, self.device = shards, look, torch.device(device)
        sizes = torch.tensor([len(index.labels) for index in shards.indexes], dtype=torch.int64)
        self.ends = sizes.cumsum(0)
        self.rows = torch.arange(int(self.ends[-1])) if rows is None else rows.cpu()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """`[N, C, H, W]`."""
        return torch.Size((len(self), self.look.stored[2], self.look.size, self.look.size))

    @property
    def dtype(self) -> torch.dtype:
        """uint8, or float32 where pictures are pooled."""
        return torch.float32 if self.look.pooled else torch.uint8

    def numel(self) -> int:
        """Return the number of values, were all of them read."""
        return self.shape.numel()

    def element_size(self) -> int:
        """Return the bytes of a value."""
        return self.dtype.itemsize

    def __getitem__(self, indices: int | slice | Tensor) -> Tensor:
        """Read the images at `indices`: an int gives `[C, H, W]`, indices of any shape `[*shape, C, H, W]`."""
        rows = self.rows[indices.cpu() if isinstance(indices, Tensor) else indices]
        return self._read(rows.flatten()).reshape(*rows.shape, *self.shape[1:])

    def split(self, count: int) -> Iterator[Tensor]:
        """Yield all pixels in order, `count` images at a time."""
        return (self[start : start + count] for start in range(0, len(self), count))

    def to(self, device: Any) -> StoredPixels:
        """Return the same pixels, handed out on `device`."""
        return StoredPixels(self.shards, self.look, self.rows, device)

    def at(self, indices: Tensor) -> StoredPixels:
        """Return the pixels at `indices` `[n]` without reading them."""
        return StoredPixels(self.shards, self.look, self.rows[indices.cpu()], self.device)

    @cached_property
    def sizes(self) -> list[int] | None:
        """How many of these pixels lie in each shard, or none where they are not in the order of the shards."""
        if len(self) > 1 and bool((self.rows[1:] <= self.rows[:-1]).any()):
            return None
        counts = torch.bincount(torch.searchsorted(self.ends, self.rows, right=True), minlength=len(self.ends))
        return [count for count in counts.tolist() if count]

    @cached_property
    def content(self) -> str:
        """SHA-256 hex digest over the digests of the shards, which of their pictures these are, shape and type."""
        digest = hashlib.sha256(b"stream 1\n")
        for index in self.shards.indexes:
            digest.update(f"{len(index.labels)} {index.content}\n".encode())
        digest.update(f"{list(self.shape)} {self.dtype}\n".encode())
        digest.update(_bytes(self.rows))
        return digest.hexdigest()

    def _read(self, rows: Tensor) -> Tensor:
        """Read each picture once and each shard forwards; shards in the order in which they are first asked for.

        That order matters where a batch leaves one window of a `ShardPlan` for the next: what is held of the first is
        used up before the second pushes it out.
        """
        wanted, inverse = torch.unique(rows, return_inverse=True)
        first = torch.full((len(wanted),), len(rows)).scatter_reduce(0, inverse, torch.arange(len(rows)), "amin")
        shards = torch.searchsorted(self.ends, wanted, right=True)
        numbers, counts = torch.unique_consecutive(shards, return_counts=True)
        stops = counts.cumsum(0).tolist()
        spans = [slice(stop - count, stop) for stop, count in zip(stops, counts.tolist(), strict=True)]
        visits = sorted(zip(numbers.tolist(), spans, strict=True), key=lambda visit: int(first[visit[1]].min()))
        out = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        most = self.look.part(PART_BYTES)
        for shard, span in visits:
            before = int(self.ends[shard]) - len(self.shards.indexes[shard].labels)
            for start in range(span.start, span.stop, most):
                part = slice(start, min(start + most, span.stop))
                places = (wanted[part] - before).tolist()
                names = [f"image {place} of shard {shard} of {self.shards.source}" for place in places]
                with _READING:
                    pictures = self.shards.read(shard, places)
                self.look.fill(out, first[part].tolist(), pictures, names)
        if len(wanted) < len(rows):
            again = first[inverse] != torch.arange(len(rows))
            out[again] = out[first[inverse[again]]]
        return out.to(self.device)


@dataclass(eq=False)
class StreamedImages(Images):
    """Labelled images on the disk: `Images` whose pixels are read as they are asked for.

    Labels, class index and normalisation constants are in memory; `subset` and `split` give views. Training reads it
    in the order of a `ShardPlan`. Whitening is not offered, and neither is everything at once.
    """

    pixels: StoredPixels  # type: ignore[assignment]  # reads like the tensor it stands for

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content of the pixels (`StoredPixels.content`), labels and constants."""
        digest = hashlib.sha256(self.pixels.content.encode())
        for tensor in (self.labels, self.mean, self.std):
            digest.update(_bytes(tensor))
        return digest.hexdigest()

    def unit(self, indices: Tensor | None = None) -> Tensor:
        """Return float32 pixels in [0, 1] at `indices` of any shape, `[*indices, C, H, W]`."""
        return super().unit(self._some(indices))

    def normalised(self, indices: Tensor | None = None) -> Tensor:
        """Return float32 images at `indices` of any shape in the space that networks see."""
        return super().normalised(self._some(indices))

    def subset(self, indices: Tensor) -> Images:
        """Return a view of the images at `indices` `[n]`, in that order."""
        labels = self.labels[indices.to(self.labels.device)]
        return dataclasses.replace(self, pixels=self.pixels.at(indices), labels=labels)

    def plan(self, batch: int, key: int | str) -> DataPlan:
        """Return an order that reads from few shards at a time; one of a shuffled view is an `EpochPlan`."""
        sizes = self.pixels.sizes
        return ShardPlan(sizes, self.pixels.shards.window, batch, key) if sizes else EpochPlan(len(self), batch, key)

    def _some(self, indices: Tensor | None) -> Tensor:
        if indices is None:
            raise DataError(f"{self.source} is read from the disk as needed; ask for indices, or load it into memory")
        return indices


def _bytes(tensor: Tensor) -> bytes:
    array = tensor.detach().cpu().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()

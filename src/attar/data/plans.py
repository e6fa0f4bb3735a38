"""Order of data as a pure function (plan, step) -> indices, and what any source of labelled images must offer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from attar.errors import DataError


@runtime_checkable
class Source(Protocol):
    """What training asks of labelled images; `Images` is one in memory, a stream over shards may be another.

    Access is by index, because only a source that can seek can resume exactly: a stream maps an index to (shard,
    offset) and shuffles by permuting shards and windows in its plan. One that cannot seek does not implement this.
    """

    @property
    def channels(self) -> int:
        """Number of colour channels."""
        ...

    @property
    def size(self) -> int:
        """Pixels a side."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex digest of the content."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 images `[n, C, H, W]` in the space networks see, and int64 labels `[n]`."""
        ...

    def plan(self, batch: int, key: int | str) -> DataPlan:
        """Return the order of data that suits where it lies: a pure function of `key` and the step."""
        ...


class DataPlan(Protocol):
    """An order of data: `EpochPlan` over anything, `ShardPlan` over shards on a disk."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch."""
        ...

    def indices(self, step: int) -> Tensor:
        """Return the int64 indices of `step`, counted from 0 over all epochs."""
        ...


@dataclass
class EpochPlan:
    """Batches from a fresh permutation of all indices in every epoch.

    The permutation of epoch e depends on `key` and e alone, so any step can be asked for first: nothing needs saving
    but the step. Only the epoch in use is held in memory.

    Attributes:
        n: number of indices.
        batch: indices a step; the last step of an epoch has fewer, unless `drop_last` leaves them out.
        key: seed of the order, a number or a text.

    Raises:
        DataError: `n` or `batch` below 1, or `drop_last` with a batch that no epoch fills.
    """

    n: int
    batch: int
    key: int | str
    drop_last: bool = False
    _epoch: tuple[int, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch < 1:
            raise DataError(
                f"an order of data needs at least one index and a batch of one; got {self.n} and {self.batch}"
            )
        if self.drop_last and self.batch > self.n:
            raise DataError(f"a batch of {self.batch} cannot be filled from {self.n} images; take a smaller batch")

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch."""
        return self.n // self.batch if self.drop_last else -(-self.n // self.batch)

    def indices(self, step: int) -> Tensor:
        """Return the int64 indices of `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.permutation(epoch)[position * self.batch : (position + 1) * self.batch]

    def permutation(self, epoch: int) -> Tensor:
        """Return the order of all `n` indices in `epoch`."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, torch.randperm(self.n, generator=_generator(f"{self.key!r}/{epoch}")))
        return self._epoch[1]


@dataclass
class ShardPlan:
    """Batches that read from at most `window` shards at a time: for data that lies in shards on a disk.

    Every epoch permutes the shards, takes them `window` by `window`, and permutes all indices inside each window;
    batches are cut from that sequence, so a batch that ends one window begins the next. Every index comes once an
    epoch. The order depends on the arguments and the epoch alone, as in `EpochPlan`; with all shards in one window it
    is the order of `EpochPlan`. Memory: one number a shard, and the indices of two windows.

    Attributes:
        sizes: indices in each shard; shard s holds the `sizes[s]` consecutive indices behind those of shard s - 1.
        window: shards that are mixed with each other.
        batch: indices a step; the last step of an epoch has fewer.
        key: seed of the order, a number or a text.

    Raises:
        DataError: no index at all, or `window` or `batch` below 1.
    """

    sizes: Sequence[int]
    window: int
    batch: int
    key: int | str
    _epoch: tuple[int, list[Tensor], Tensor] | None = field(default=None, init=False, repr=False, compare=False)
    _windows: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.window < 1 or self.batch < 1 or min(self.sizes, default=-1) < 0 or not self.n:
            raise DataError(
                "an order of sharded data needs at least one index, a window of one shard and a batch of one; got"
                f" {len(self.sizes)} shards of {sum(self.sizes)} indices, window {self.window}, batch {self.batch}"
            )

    @cached_property
    def n(self) -> int:
        """Number of indices."""
        return int(sum(self.sizes))

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch."""
        return -(-self.n // self.batch)

    def indices(self, step: int) -> Tensor:
        """Return the int64 indices of `step`, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first, last = place * self.batch, min((place + 1) * self.batch, self.n)
        ends = self._order(epoch)[1]
        parts, window = [], int(torch.searchsorted(ends, first, right=True))
        while first < last:
            begin = int(ends[window - 1]) if window else 0
            stop = min(last, int(ends[window]))
            parts.append(self._permuted(epoch, window)[first - begin : stop - begin])
            first, window = stop, window + 1
        return torch.cat(parts)

    def shards(self, epoch: int) -> list[Tensor]:
        """Return the shards of each window of `epoch`, in the order in which the windows are read."""
        return self._order(epoch)[0]

    @cached_property
    def _starts(self) -> Tensor:
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        return sizes.cumsum(0) - sizes

    def _order(self, epoch: int) -> tuple[list[Tensor], Tensor]:
        """Return the windows of an epoch and the positions at which they end."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(len(self.sizes), generator=_generator(f"{self.key!r}/{epoch}/shards"))
            windows = [window.sort().values for window in order.split(self.window)]
            sizes = torch.tensor(self.sizes, dtype=torch.int64)
            ends = torch.stack([sizes[window].sum() for window in windows]).cumsum(0)
            self._epoch = (epoch, windows, ends)
        return self._epoch[1], self._epoch[2]

    def _permuted(self, epoch: int, window: int) -> Tensor:
        if (epoch, window) not in self._windows:
            while len(self._windows) > 1:
                del self._windows[next(iter(self._windows))]  # the older of two: a batch spans two windows at a time
            spans = [
                torch.arange(int(self._starts[shard]), int(self._starts[shard]) + self.sizes[shard])
                for shard in self._order(epoch)[0][window].tolist()
            ]
            members = torch.cat(spans)
            name = f"{self.key!r}/{epoch}/{window}" if window else f"{self.key!r}/{epoch}"  # one window: as EpochPlan
            self._windows[epoch, window] = members[torch.randperm(len(members), generator=_generator(name))]
        return self._windows[epoch, window]


@runtime_checkable
class Planned(Protocol):
    """A source that knows in which order it is best read."""

    def plan(self, batch: int, key: int | str) -> DataPlan:
        """Return that order."""
        ...


def order_of(source: Sized, batch: int, key: int | str) -> DataPlan:
    """Return the source's own plan where it has one, else an `EpochPlan` over its indices."""
    return source.plan(batch, key) if isinstance(source, Planned) else EpochPlan(len(source), batch, key)


def _generator(name: str) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(seed)

"""Order of data as a pure function (plan, step) -> indices, and what any source of labelled images must offer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
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
            seed = int.from_bytes(hashlib.sha256(f"{self.key!r}/{epoch}".encode()).digest()[:8], "little")
            rng = torch.Generator().manual_seed(seed)
            self._epoch = (epoch, torch.randperm(self.n, generator=rng))
        return self._epoch[1]

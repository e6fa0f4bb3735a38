"""Filling a store: rows are appended, and count from the next commit on, whatever happens in between."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor

from attar import files
from attar.data.soft_labels.store import (
    MAX_SHARDS,
    Head,
    hash_prefix,
    is_leftover,
    read_head,
    read_manifests,
    shard_numbers,
    shard_path,
    write_head,
)
from attar.errors import AttarError, DamagedFile, DataError
from attar.spec import digest, to_json


class SoftLabelWriter:
    """A store opened for appending; made if the folder holds none. Use as a context manager.

    A row counts once a `commit` that follows it has renamed its shard's manifest into place; what a killed writer left
    behind the last commit is dropped. `state_dict` commits, so that a run that keeps the writer (`run.keep`) never has
    a checkpoint that knows of more rows than the disk does.

    Raises:
        DataError: the store there is of another teacher, other data, other views or another form.
        AttarError: the folder holds something else, or another process is writing to it.
        DamagedFile: the store there is damaged.
    """

    def __init__(self, folder: str | Path, head: Head) -> None:
        self.folder, self.head = Path(folder), head
        self._file: IO[bytes] | None = None  # the shard that is being filled
        self._full, self._rows, self._committed = 0, 0, 0  # shards filled; rows in that shard; those that count
        self._last: np.uint64 | None = None  # key of the last row
        self._hash = hashlib.sha256()  # over the rows in that shard
        files.make_folder(self.folder)
        self._refuse_others()  # before a lock is put among them
        if (self.folder / ".lock").is_symlink():  # opening it would empty what it points to
            raise DamagedFile(f"{self.folder / '.lock'} is a link; a store holds no links")
        self._lock = FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise AttarError(f"another process is writing to the soft-label store {self.folder}; wait for it") from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.close()

    def __len__(self) -> int:
        """Return the rows appended, those not yet committed included."""
        return self._full * self.head.rows_per_shard + self._rows

    def append(self, samples: Tensor, views: Tensor, logits: Tensor) -> None:
        """Append teacher logits `[n, classes]` of samples `[n]` in views `[n]`, in ascending order of (view, sample).

        Raises:
            DataError: ids out of range or out of order, or logits of another shape than the store's.
            NonFinite: the teacher's output is NaN or infinite.
            AttarError: the disk is full; what was committed is intact.
        """
        keys = self.head.keys(samples, views)
        if (keys[1:] <= keys[:-1]).any() or (len(keys) and self._last is not None and keys[0] <= self._last):
            raise DataError(
                "rows of a soft-label store come in ascending order of (view, sample), each once; sort the batch, and "
                f"append no pair that is there already ({len(self)} rows are)"
            )
        records = self.head.codec.encode(keys, logits)
        while len(records):
            self._next_shard_if_full()  # here too: a disk may have been full when the shard was
            room = self.head.rows_per_shard - self._rows
            self._write(records[:room])
            records = records[room:]
            self._next_shard_if_full()

    def commit(self) -> None:
        """Make all appended rows count: rows to the disk first, then the manifest of their shard."""
        if self._rows == self._committed:
            return
        if self._file is None:
            raise AttarError(f"the disk was full when {self.folder} was written; open it again to go on from its end")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error
        self._write_manifest(self._rows, self._hash.hexdigest())
        self._committed = self._rows

    def rewind(self, rows: int) -> None:
        """Drop all rows from number `rows` on, as a run does that goes on from an earlier checkpoint.

        Raises:
            DamagedFile: the store has fewer rows.
        """
        if rows == len(self):
            return
        if rows > len(self):
            raise DamagedFile(
                f"{self.folder} has {len(self)} rows, but its checkpoint counts on {rows}: files were removed. "
                "Remove the run folder and give the same command again"
            )
        self.commit()
        self._close_file()
        full, kept = divmod(rows, self.head.rows_per_shard)
        for shard in range(self._full, full, -1):
            self._drop(shard)
        self._full, self._rows = full, kept
        if kept:
            path = shard_path(self.folder, full)
            self._write_manifest(kept, hash_prefix(path, kept * self._size).hexdigest())
        else:
            self._drop(full)
        self._start_shard()

    def state_dict(self) -> dict[str, int]:
        """Commit, and return how many rows there are."""
        self.commit()
        return {"rows": len(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Rewind to the rows of a checkpoint."""
        self.rewind(int(state["rows"]))

    def close(self) -> None:
        """Close without committing."""
        try:
            self._close_file()
        finally:
            self._lock.release()

    # ------------------------------------------------------------------ inside

    @property
    def _size(self) -> int:
        return self.head.codec.record.itemsize

    def _refuse_others(self) -> None:
        """Refuse a folder that is no store and holds something else than what a killed writer leaves."""
        if (self.folder / "head.json").exists():
            return
        others = [path for path in self.folder.iterdir() if path.name != ".lock" and not is_leftover(path)]
        if others:
            raise AttarError(f"{self.folder} holds {others[0].name} and is no soft-label store; choose another folder")

    def _open(self) -> None:
        for leftover in filter(is_leftover, list(self.folder.iterdir())):  # ours alone: the folder is the user's
            leftover.unlink(missing_ok=True)
        if not (self.folder / "head.json").exists():
            write_head(self.folder, self.head)
        there = to_json(read_head(self.folder))
        mine = to_json(self.head)
        if different := [name for name in mine if mine[name] != there[name]]:
            raise DataError(
                f"{self.folder} was labelled with another {' and another '.join(different)}: rows of two kinds do not "
                f"mix. It has {there[different[0]]!r}, you brought {mine[different[0]]!r}; write to another folder"
            )
        manifests = read_manifests(self.folder, self.head)
        for shard in shard_numbers(self.folder):
            if shard >= len(manifests):
                self._drop(shard)  # rows that no manifest makes count
        rows = sum(manifest["rows"] for manifest in manifests)
        self._full, self._rows = divmod(rows, self.head.rows_per_shard)
        self._start_shard()
        if self._rows and self._hash.hexdigest() != manifests[-1]["sha256"]:
            self._close_file()
            raise DamagedFile(
                f"{shard_path(self.folder, self._full)} does not match its checksum; label the data again"
            )

    def _next_shard_if_full(self) -> None:
        if self._rows == self.head.rows_per_shard:
            self.commit()
            self._full, self._rows = self._full + 1, 0
            self._start_shard()

    def _start_shard(self) -> None:
        """Open the shard that is being filled, behind the `_rows` rows in it that count."""
        self._close_file()
        path = shard_path(self.folder, self._full)
        self._committed = self._rows
        self._hash = hash_prefix(path, self._rows * self._size) if self._rows else hashlib.sha256()
        self._last = self._last_key()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # a link in a store would lead the pen outside
        try:
            self._unlink_from_artifacts(path)
            self._file = os.fdopen(os.open(path, flags, 0o666), "r+b")
            self._file.truncate(self._rows * self._size)  # what a killed writer left half-written
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unlink_from_artifacts(self, path: Path) -> None:
        """Give the store its own copy of a shard that a saved artifact links to, so that writing does not reach it."""
        if path.exists() and path.lstat().st_nlink > 1:
            with files.replacing(path) as aside:
                shutil.copyfile(path, aside, follow_symlinks=False)

    def _last_key(self) -> np.uint64 | None:
        if not len(self):
            return None
        shard, place = divmod(len(self) - 1, self.head.rows_per_shard)
        with shard_path(self.folder, shard).open("rb") as file:
            file.seek(place * self._size)
            return np.uint64(int.from_bytes(file.read(8), "little"))

    def _write(self, records: np.ndarray) -> None:
        if self._file is None:
            raise AttarError(f"the disk was full when {self.folder} was written; open it again to go on from its end")
        if self._full >= MAX_SHARDS:
            raise DataError(f"{self.folder} has {MAX_SHARDS} shards, the most a store holds; take more rows a shard")
        data = records.tobytes()
        try:
            self._file.write(data)
        except OSError as error:
            self._forget_file()  # part of these rows may stand in it: whoever opens the store again cuts them off
            raise self._unwritable(error) from error
        self._hash.update(data)
        self._rows += len(records)
        self._last = records["key"][-1]

    def _write_manifest(self, rows: int, checksum: str) -> None:
        content = {"rows": rows, "sha256": checksum}
        path = shard_path(self.folder, self._full).with_suffix(".json")
        files.write_json(path, {**content, "digest": digest(content)})

    def _drop(self, shard: int) -> None:
        path = shard_path(self.folder, shard)
        path.with_suffix(".json").unlink(missing_ok=True)  # first what makes it count
        path.unlink(missing_ok=True)

    def _forget_file(self) -> None:
        """Close the shard's file, whatever comes of that; nothing more can be appended or committed."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> AttarError:
        return AttarError(
            f"{self.folder} cannot be written ({error.strerror}). Rows committed before are intact; free some space, "
            "or mend the permissions, and give the same command again"
        )

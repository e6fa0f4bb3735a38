"""metrics.jsonl: one line a record, truncated to the checkpoint when a run goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attar import files


class MetricsLog:
    """An append-only file of JSON records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)  # a line that the disk refuses must not wait to be refused again

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; numbers that are not finite become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = json.dumps(clean).encode() + b"\n"
        with files.explained(self.path):
            while line:  # a nearly full disk takes a part
                line = line[self._file.write(line) :]

    def position(self) -> int:
        """Make the file durable and return its length in bytes."""
        with files.explained(self.path):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def truncate(self, length: int) -> None:
        """Cut the file back to `length` bytes."""
        self._file.truncate(min(length, self.path.stat().st_size))
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SilentLog(MetricsLog):
    """Takes records and keeps none: the log of a process that is not the first."""

    def __init__(self) -> None:
        """Open nothing."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Forget the record."""

    def position(self) -> int:
        """Return 0."""
        return 0

    def truncate(self, length: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file; a last line cut short by a kill is left out."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records

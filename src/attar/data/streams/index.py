"""What one pass over the stored pictures found out, kept under `ATTAR_HOME/indexes` so that the next start has it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attar import files
from attar.data.streams.pictures import Shape
from attar.errors import DamagedFile

FORMAT = 1  # raised whenever what an index holds changes


@dataclass(frozen=True, eq=False)
class Index:
    """Labels and content of one shard, or of one table.

    Attributes:
        labels: `[n]` int64.
        shapes: the distinct shapes of its pictures, in the order in which they came first.
        content: SHA-256 hex digest over label, length and bytes of every picture in order.
        classes: names of the labels, where the data tell any.
        offsets, lengths: `[n]` int64, where the bytes of each picture lie in the file; empty for tables.
    """

    labels: Tensor
    shapes: tuple[Shape, ...]
    content: str
    classes: tuple[str, ...]
    offsets: Tensor
    lengths: Tensor


class Content:
    """Gathers the distinct shapes and the digest of pictures, one by one."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.shapes: dict[Shape, None] = {}

    def add(self, label: int, data: bytes, shape: Shape) -> None:
        """Take in one labelled picture."""
        self.digest.update(f"{label} {len(data)}\n".encode())
        self.digest.update(data)
        if len(self.shapes) < 3:  # more would only lengthen the message that refuses them
            self.shapes[shape] = None


def cached(kind: str, paths: Sequence[Path], make: Callable[[], Index]) -> Index:
    """Return the index of files, made by `make` unless one was kept of the same paths, sizes and times of change.

    A kept index that is damaged is made again. A disk that does not take the index is the user's to mend.
    """
    parts = [f"{FORMAT} {kind}"]
    for path in paths:
        status = path.stat()
        parts.append(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}")
    name = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    kept = files.home() / "indexes" / f"{name[:32]}.safetensors"
    if kept.exists():
        try:
            return _unpack(files.load_tensors(kept), kept)
        except DamagedFile:
            pass  # it is only a copy of what the data say
    index = make()
    files.save_tensors(kept, _pack(index))
    return index


def _pack(index: Index) -> dict[str, Tensor]:
    about = json.dumps({"shapes": index.shapes, "content": index.content, "classes": index.classes})
    tensors = {
        "about": torch.tensor(list(about.encode()), dtype=torch.uint8),
        "labels": index.labels,
        "offsets": index.offsets,
        "lengths": index.lengths,
    }
    return tensors | {"checksum": _checksum(tensors)}


def _unpack(tensors: dict[str, Tensor], path: Path) -> Index:
    try:
        stored = tensors.pop("checksum")
        if not torch.equal(stored, _checksum(tensors)):
            raise DamagedFile(f"{path} does not match its checksum")
        about = json.loads(bytes(tensors["about"].tolist()))
        return Index(
            labels=tensors["labels"],
            shapes=tuple((height, width, channels) for height, width, channels in about["shapes"]),
            content=about["content"],
            classes=tuple(about["classes"]),
            offsets=tensors["offsets"],
            lengths=tensors["lengths"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedFile(f"{path} is no index ({error})") from None


def _checksum(tensors: dict[str, Tensor]) -> Tensor:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)

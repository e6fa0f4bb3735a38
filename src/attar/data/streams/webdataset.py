"""WebDataset shards: tar archives in which `KEY.cls` and `KEY.png` (jpg, jpeg, webp) make a labelled picture."""

from __future__ import annotations

import io
import itertools
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from attar.data.streams.index import Content, Index, cached
from attar.data.streams.pictures import LARGEST, shape_of
from attar.data.streams.tar import Member, members
from attar.errors import DataError

PICTURES = ("png", "jpg", "jpeg", "webp")
LABEL = "cls"
OPEN_FILES = 16
MOST_SHARDS = 100_000
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")


class TarShards:
    """Indexed tar archives; a picture is one read at a known place.

    Raises:
        DataError: a shard is damaged, compressed, or does not hold labelled pictures.
    """

    window = 16  # shards that an epoch mixes with each other

    def __init__(self, paths: Sequence[Path], source: str) -> None:
        self.paths, self.source = tuple(paths), source
        self.indexes = [cached("wds", [path], partial(index_shard, path)) for path in self.paths]
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    def read(self, shard: int, places: Sequence[int]) -> list[bytes]:
        """Return the encoded pictures at `places` of a shard.

        Raises:
            DataError: the shard has changed since it was indexed.
        """
        index, file = self.indexes[shard], self._file(shard)
        found = []
        for place in places:
            length = int(index.lengths[place])
            data = os.pread(file.fileno(), length, int(index.offsets[place]))
            if len(data) != length:
                raise DataError(f"{self.paths[shard]} became shorter while it was in use; start again")
            found.append(data)
        return found

    def _file(self, shard: int) -> io.FileIO:
        if shard not in self._files:
            while len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[shard] = io.FileIO(self.paths[shard])
        self._files.move_to_end(shard)
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}  # open files do not travel to another process

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", {}).values():
            file.close()


def index_shard(path: Path) -> Index:
    """Read a shard once: where its pictures lie, their labels and shapes, and the digest of their content.

    Raises:
        DataError: a damaged archive, a sample without exactly one picture and one label, or a broken picture.
    """
    content = Content()
    labels, offsets, lengths = [], [], []
    size = path.stat().st_size
    with path.open("rb") as file:
        for key, parts in _samples(members(file, size, str(path))):
            name = f"'{key}' in {path}"
            picture, label = _picture_and_label(parts, name)
            number = _number(_bytes(file, label, 32, name), name)
            data = _bytes(file, picture, LARGEST, name)
            content.add(number, data, shape_of(data, name))
            labels.append(number)
            offsets.append(picture.offset)
            lengths.append(picture.length)
    if not labels:
        raise DataError(f"{path} holds no samples; a sample is KEY.cls beside KEY.{' or .'.join(PICTURES)}")
    columns = [torch.tensor(column, dtype=torch.int64) for column in (labels, offsets, lengths)]
    return Index(columns[0], tuple(content.shapes), content.digest.hexdigest(), (), columns[1], columns[2])


def shard_paths(location: str, source: str) -> list[Path]:
    """Return the archives that a folder, a file, a glob or a brace pattern (`train-{000..127}.tar`) names, in order.

    Raises:
        DataError: none, one that is missing, or one that cannot be sought in (compressed, or on a server).
    """
    if re.match(r"[a-z][a-z0-9+.-]*://", location):
        raise DataError(
            f"data '{source}' is on a server, and a stream that cannot seek cannot go on exactly where a stopped run"
            " was; download the shards and name their folder"
        )
    found: list[Path] = []
    for pattern in _expanded(location, source):
        path = Path(pattern).expanduser()
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.name.endswith((".tar", *COMPRESSED)))
        elif path.exists():
            found.append(path)
        elif any(letter in pattern for letter in "*["):
            anchor = Path(path.anchor)
            found += sorted(anchor.glob(str(path.relative_to(anchor))))
        else:
            raise DataError(f"data '{source}' looks for {path.absolute()}, and nothing is there")
    if not found:
        raise DataError(f"data '{source}' finds no .tar files at {Path(location).absolute()}")
    for path in found:
        if path.name.endswith(COMPRESSED):
            raise DataError(
                f"{path} is compressed, and a stream that cannot seek cannot go on exactly where a stopped run was;"
                " unpack it to .tar (pictures are compressed already)"
            )
        if not path.is_file():
            raise DataError(f"{path} is no file; data '{source}' names .tar files")
    return found


def _expanded(pattern: str, source: str) -> list[str]:
    """Expand `{a,b}` and `{000..127}` as a shell does."""
    made = [pattern]
    while braces := _BRACES.search(made[0]):
        choices = braces[1].split(",")
        if span := _RANGE.fullmatch(braces[1]):
            first, last = int(span[1]), int(span[2])
            if not 0 <= last - first < MOST_SHARDS:
                raise DataError(f"'{braces[0]}' in data '{source}' must count up, to at most {MOST_SHARDS} shards")
            choices = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
        if len(made) * len(choices) > MOST_SHARDS:
            raise DataError(f"data '{source}' names more than {MOST_SHARDS} shards")
        made = [one.replace(braces[0], choice, 1) for one in made for choice in choices]
    return made


def _samples(found: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Group consecutive members by their name up to the first dot; extensions in lower case."""

    def key(member: Member) -> str:
        folder, _, name = member.name.rpartition("/")
        return f"{folder}/{name.split('.', 1)[0]}"

    for name, group in itertools.groupby(found, key):
        parts: dict[str, Member] = {}
        for member in group:
            extension = member.name.rpartition("/")[2].partition(".")[2].lower()
            if extension in parts:
                raise DataError(f"sample '{name.lstrip('/')}' has two files .{extension}")
            parts[extension] = member
        yield name.lstrip("/"), parts


def _picture_and_label(parts: dict[str, Member], name: str) -> tuple[Member, Member]:
    pictures = [extension for extension in parts if extension in PICTURES]
    if len(pictures) != 1 or LABEL not in parts:
        raise DataError(
            f"sample {name} has {', '.join(f'.{extension}' for extension in parts)}; it needs .cls and exactly one of"
            f" .{', .'.join(PICTURES)}, next to each other"
        )
    return parts[pictures[0]], parts[LABEL]


def _bytes(file: BinaryIO, member: Member, most: int, name: str) -> bytes:
    if member.length > most:
        raise DataError(f"{name}: '{member.name}' has {member.length} bytes; at most {most} are read")
    here = file.tell()
    file.seek(member.offset)
    data = file.read(member.length)
    file.seek(here)
    return data


def _number(text: bytes, name: str) -> int:
    if not re.fullmatch(rb"\s*\d{1,9}\s*", text):
        raise DataError(f"{name}: the label in .cls is a whole number from 0 up; got {text[:32]!r}")
    return int(text)

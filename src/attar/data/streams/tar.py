"""The members of a tar archive, found by reading its headers alone; nothing is ever extracted."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, TypedDict

from attar.errors import DataError

BLOCK = 512  # bytes of a header; contents are padded to a multiple of it
LONGEST_NAME = 1 << 16  # bytes of an extended header that we read; real ones hold a path
END = bytes(BLOCK)
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)


class _Extended(TypedDict, total=False):
    """What an extended header says of the member behind it."""

    path: str
    size: int


@dataclass(frozen=True)
class Member:
    """A plain file inside an archive: its name, and where its bytes lie."""

    name: str
    offset: int
    length: int


def members(file: BinaryIO, size: int, archive: str) -> Iterator[Member]:
    """Yield the plain files of an uncompressed archive of `size` bytes, in order; folders are passed over.

    Reads headers (and extended headers that hold long names) and nothing else, so it costs no memory whatever the
    headers claim.

    Raises:
        DataError: truncated, a wrong checksum, a size that reaches behind the end of the archive, a link, device or
            sparse file, or a name that is absolute or climbs with `..`.
    """
    position = 0
    extended: _Extended = {}
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise DataError(f"{archive} is truncated: it ends at byte {size} without the mark of a tar's end")
        if header == END:
            return
        try:
            entry = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise DataError(f"{archive} is not a sound tar archive at byte {position}: {error}") from None
        begin = position + BLOCK
        name = extended.get("path") or entry.name
        length = entry.size if entry.type in EXTENDED else extended.get("size", entry.size)
        if not 0 <= length <= size - begin:
            raise DataError(
                f"{archive} is truncated or its header at byte {position} lies: '{_shown(name)}' claims {length} bytes"
                f" where {size - begin} are left"
            )
        position = begin + -(-length // BLOCK) * BLOCK
        if entry.type in EXTENDED:
            extended.update(_extension(file, entry, archive))
            continue
        if entry.type in FILES:
            yield Member(_safe(name, archive), begin, length)
        elif entry.type not in (tarfile.DIRTYPE, tarfile.XGLTYPE):
            raise DataError(
                f"{archive} holds '{_shown(name)}', which is no plain file (tar type {entry.type!r}); shards hold plain"
                " files alone: no links, devices or sparse files"
            )
        extended = {}


def _extension(file: BinaryIO, entry: tarfile.TarInfo, archive: str) -> _Extended:
    """Return the name and size that an extended header gives the member behind it."""
    if entry.size > LONGEST_NAME:
        raise DataError(f"{archive} has an extended header of {entry.size} bytes; a name needs no more than 65536")
    data = file.read(entry.size)
    if entry.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: _Extended = {}
    while data.rstrip(b"\0"):
        digits, space, _ = data.partition(b" ")
        count = int(digits) if space and digits.isdigit() and len(digits) < 7 else 0
        key, equals, value = data[len(digits) + 1 : count - 1].partition(b"=")
        if not len(digits) + 2 < count <= len(data) or not equals or data[count - 1 : count] != b"\n":
            raise DataError(f"{archive} has a malformed extended header before byte {file.tell()}")
        if key == b"path":
            found["path"] = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            found["size"] = int(value) if value.isdigit() and len(value) < 19 else -1
        elif key.startswith(b"GNU.sparse"):
            raise DataError(f"{archive} holds a sparse file; shards hold plain files alone")
        data = data[count:]
    return found


def _safe(name: str, archive: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise DataError(
            f"{archive} holds a file named '{_shown(name)}'; names in a shard are relative and do not climb with '..'"
        )
    return name


def _shown(name: object) -> str:
    return ascii(str(name)[:80])[1:-1]

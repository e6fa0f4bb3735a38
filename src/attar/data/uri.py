"""The URIs of data sources: `fashion-mnist?size=14`, `folder:photos?zca`. Imports no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from attar.errors import DataError, did_you_mean

NAMED = ("fashion-mnist-mini", "fashion-mnist", "digits", "emoji", "photo-patches")
POINTS = ("ring", "checkerboard")  # points of a closed form, drawn without end: for samplers alone
LOCATED = ("folder", "idx", "npz", "hf", "parquet", "arrow", "wds")
STREAMED = ("parquet", "arrow", "wds")  # kinds that can be read from the disk as needed; parquet: with ?stream
CROPPED = ("folder", "hf", "parquet")  # kinds whose pictures may have any size and be cropped
OPTIONS = ("size", "crop", "zca", "stream")


@dataclass(frozen=True)
class DataURI:
    """A parsed URI: `kind` one of `NAMED`, `POINTS` or `LOCATED`, `location` a path or hub name (empty for names)."""

    text: str
    kind: str
    location: str = ""
    size: int | None = None  # pixels a side after average pooling
    crop: int | None = None  # pixels a side to which the middle square of every picture is brought as it is read
    zca: bool = False
    stream: bool = False  # read from the disk as needed; always so for arrow and wds


def parse(uri: str) -> DataURI:
    """Parse the URI of a data source.

    Raises:
        DataError: unknown source or option, a path where none belongs, or a path that is missing.

    >>> parse("fashion-mnist?size=14&zca").size
    14
    """
    address, _, query = uri.strip().partition("?")
    kind, colon, location = address.partition(":")
    if kind in NAMED and not colon:
        pass
    elif kind in POINTS and not colon:
        if query:
            raise DataError(f"data '{uri}' are points, which have no options; write {kind}")
    elif kind in LOCATED:
        if not location.strip():
            raise DataError(
                f"data '{uri}' names no {'data set' if kind == 'hf' else 'path'}: write {kind}:{_what(kind)}"
            )
        if "\0" in location:
            raise DataError(f"data '{uri!r}' holds a NUL character; no path does")
    else:
        known = [*NAMED, *POINTS, *(f"{name}:{_what(name)}" for name in LOCATED)]
        hint = did_you_mean(kind, [*NAMED, *POINTS, *LOCATED])
        raise DataError(f"unknown data '{uri}'{hint} Known: {', '.join(known)}; options: ?size=14, ?zca")
    sides, flags = _options(query, uri)
    stream = flags["stream"]
    if stream and kind not in STREAMED:
        raise DataError(f"option 'stream' in data '{uri}' is for {', '.join(STREAMED)}; {kind} is read into memory")
    if "crop" in sides and (stream or kind not in CROPPED):
        raise DataError(
            f"option 'crop' in data '{uri}' is for {', '.join(CROPPED)}, read into memory; pictures of "
            f"{'a stream' if stream or kind in STREAMED else kind} have one size"
        )
    disk = stream or kind in ("arrow", "wds")
    return DataURI(uri.strip(), kind, location, zca=flags["zca"], stream=disk, **sides)


def existing(uri: DataURI) -> Path:
    """Return the path that a URI names.

    Raises:
        DataError: nothing is there, or it may not be read.
    """
    path = Path(uri.location).expanduser()
    try:
        found = path.exists()
    except OSError as error:
        raise DataError(f"data '{uri.text}' cannot be looked up: {error.strerror}") from None
    if not found:
        raise DataError(f"data '{uri.text}' looks for {path.absolute()}, and nothing is there")
    if not os.access(path, os.R_OK):
        raise DataError(f"data '{uri.text}' may not be read: no permission for {path.absolute()}")
    return path


def uri_slug(uri: str) -> str:
    """Return a short name of a data URI that is safe in a file name.

    >>> uri_slug("folder:/photos/My cats/?size=14")
    'folder-my-cats-14'
    """
    parsed = parse(uri)
    last = "" if parsed.kind in NAMED + POINTS else PurePath(parsed.location).name.split(".")[0]
    words = [parsed.kind, last, str(parsed.crop or ""), str(parsed.size or ""), "zca" if parsed.zca else ""]
    return re.sub(r"[^a-z0-9]+", "-", "-".join(word for word in words if word).lower()).strip("-")


def _what(kind: str) -> str:
    return "NAME" if kind == "hf" else "PATH"


def _options(query: str, uri: str) -> tuple[dict[str, int], dict[str, bool]]:
    """Return the options that are pixels a side and those that are on or off."""
    sides, flags = dict[str, int](), {"zca": False, "stream": False}
    for option in filter(None, query.split("&")):
        name, equals, value = option.partition("=")
        if name not in OPTIONS:
            hint = did_you_mean(name, OPTIONS)
            raise DataError(
                f"unknown option '{name}' in data '{uri}'{hint} Known: size=PIXELS, crop=PIXELS, zca, stream"
            )
        if name in flags:
            if equals:
                raise DataError(f"option '{name}' in data '{uri}' takes no value: write ?{name}")
            flags[name] = True
        elif not re.fullmatch(r"[1-9][0-9]{0,4}", value):
            raise DataError(f"option '{name}' in data '{uri}' is a number of pixels, as in ?{name}=14; got '{value}'")
        else:
            sides[name] = int(value)
    return sides, flags

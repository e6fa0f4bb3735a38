"""NumPy's `.npz` archives, read without pickle and without trusting what their headers claim."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from attar.data.arrays import from_arrays
from attar.data.splits import Splits, paired
from attar.errors import DataError

MAX_DEFLATE_RATIO = 1032  # deflate cannot expand a byte to more
PAIRS = (("x_train", "y_train"), ("images", "labels"), ("x", "y"))
TEST_PAIR = ("x_test", "y_test")


def read_npz(path: Path, source: str) -> Splits:
    """Read `x_train`, `y_train` (and `x_test`, `y_test`), or `images`, `labels`, or `x`, `y` from a `.npz` file.

    Raises:
        DataError: not an archive of arrays, none of these names, object arrays, or a header that does not fit the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            found = next((pair for pair in PAIRS if set(pair) <= set(names)), None)
            if found is None:
                wanted = ", or ".join(" and ".join(pair) for pair in PAIRS)
                raise DataError(f"{path} holds {', '.join(names[:8]) or 'nothing'}; needed are {wanted}")
            has_test = found == PAIRS[0] and bool(set(TEST_PAIR) & set(names))
            if has_test and not set(TEST_PAIR) <= set(names):
                raise DataError(f"{path} has only one of {' and '.join(TEST_PAIR)}")
            arrays = {name: read_array(archive, name, path) for name in (*found, *(TEST_PAIR if has_test else ()))}
    except _BROKEN as error:
        raise DataError(f"{path} cannot be read as a .npz archive: {error}") from None
    train = from_arrays(arrays[found[0]], arrays[found[1]], source=source)
    if not has_test:
        return paired(train, None)
    return paired(train, from_arrays(arrays["x_test"], arrays["y_test"], train.classes, source=source))


def read_array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """Read one array of an open archive, after its header has been held against the size of its member.

    Raises:
        DataError: it holds Python objects, or its header claims another size than the member has.
    """
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > min(member.compress_size, path.stat().st_size) * MAX_DEFLATE_RATIO:
        raise DataError(f"'{name}' in {path} claims {member.file_size} bytes, more than the file can hold")
    with archive.open(member) as file:
        shape, column_major, dtype = _header(file)
        if dtype.hasobject:
            raise DataError(f"'{name}' in {path} holds Python objects, which are never read; save numbers")
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - file.tell() or dtype.itemsize == 0:
            raise DataError(f"'{name}' in {path} claims {shape} of {dtype}, which is not what the file holds")
        data = file.read(size)
        if len(data) != size:
            raise DataError(f"'{name}' in {path} ends early")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if column_major else "C")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of headers written by Python 2, which read well
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        return read(file)


_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    io.UnsupportedOperation,
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    RuntimeError,  # encrypted members
    MemoryError,  # what the parser of headers says of too many brackets
    NotImplementedError,  # compression that zipfile lacks
)

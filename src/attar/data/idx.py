"""IDX files, the format of MNIST and its relatives, read without trusting what their headers claim."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from attar.data.arrays import from_arrays
from attar.data.constants import BY_NAME, FASHION_MNIST, FASHION_MNIST_CLASSES, Constants
from attar.data.images import Images
from attar.data.splits import Splits, paired
from attar.errors import DataError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MAX_DEFLATE_RATIO = 1032  # deflate cannot expand a byte to more
CHUNK = 1 << 20
NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or gzip-compressed (by its first bytes, whatever its name).

    The header's claim is held against the size of the file before anything is allocated, and decompression stops where
    the claim ends.

    Raises:
        DataError: not an IDX file of unsigned bytes, cut short, too long, or corrupt.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            limit = os.fstat(raw.fileno()).st_size * (MAX_DEFLATE_RATIO if compressed else 1)
            if not compressed:
                return _parse(raw, limit, path)
            with gzip.GzipFile(fileobj=raw) as unzipped:
                return _parse(unzipped, limit, path)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an IDX file: {error}") from None


def _parse(file: BinaryIO, limit: int, path: Path) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or not 1 <= magic[3] <= 4:
        raise DataError(f"{path} is not an IDX file: it starts with {magic.hex() or 'nothing'}")
    if magic[2] != 0x08:
        raise DataError(f"{path} holds values of IDX type 0x{magic[2]:02x}; only unsigned bytes (0x08) are images")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path} ends inside its header")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    count = math.prod(shape)
    if count + 4 + len(sizes) > limit:
        raise DataError(
            f"{path} claims {' × '.join(map(str, shape))} bytes, more than the file can hold; it is cut or corrupt"
        )
    data = bytearray()
    while len(data) < count and (part := file.read(min(CHUNK, count - len(data)))):
        data += part
    if len(data) < count or file.read(1):
        relation = "fewer" if len(data) < count else "more"
        raise DataError(f"{path} holds {relation} bytes than the {' × '.join(map(str, shape))} its header claims")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_idx_folder(folder: Path, source: str) -> Splits:
    """Read a folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and, if there, the `t10k` pair, or `.gz`.

    Raises:
        DataError: the training pair or half of the test pair is missing, or a file is corrupt.
    """
    if not folder.is_dir():
        raise DataError(
            f"data '{source}' must be a folder with {NAMES['train'][0]}[.gz] and its like; {folder} is a file"
        )
    constants = BY_NAME.get(folder.name.lower())
    return _read_folder(folder, source, None, constants)


def fashion_mnist() -> Splits:
    """Load Fashion-MNIST from `ATTAR_FASHION_MNIST`, Debian's package, or the Hugging Face hub, in that order.

    A folder that `ATTAR_FASHION_MNIST` names is the only place looked at.

    Raises:
        DataError: it is nowhere; the message lists every place looked at.
    """
    named = os.environ.get("ATTAR_FASHION_MNIST")
    folder = Path(named).expanduser() if named else DEBIAN_FOLDER
    if folder.is_dir():
        return _read_folder(folder, "fashion-mnist", FASHION_MNIST_CLASSES, FASHION_MNIST)
    if named:
        raise DataError(f"ATTAR_FASHION_MNIST names {folder}, and no folder is there")
    from attar.data import hub

    try:
        return hub.read_hub("zalando-datasets/fashion_mnist", "fashion-mnist")
    except DataError as error:
        raise DataError(
            "Fashion-MNIST was not found. Looked at: the folder in ATTAR_FASHION_MNIST (not set);"
            f" {DEBIAN_FOLDER} (absent); the hub's zalando-datasets/fashion_mnist ({error})."
            " Install it with 'apt install dataset-fashion-mnist', or use the embedded 'fashion-mnist-mini'"
        ) from None


def _read_folder(folder: Path, source: str, classes: tuple[str, ...] | None, constants: Constants | None) -> Splits:
    train = _read_pair(folder, "train", source, classes, constants)
    if train is None:
        raise DataError(
            f"data '{source}' needs {NAMES['train'][0]}[.gz] and {NAMES['train'][1]}[.gz] in {folder.absolute()}"
        )
    return paired(train, _read_pair(folder, "test", source, train.classes, constants))


def _read_pair(
    folder: Path, split: str, source: str, classes: tuple[str, ...] | None, constants: Constants | None
) -> Images | None:
    found = [
        next((p for end in ("", ".gz") if (p := folder / f"{name}{end}").is_file()), None) for name in NAMES[split]
    ]
    images_path, labels_path = found
    if images_path is None and labels_path is None:
        return None
    if images_path is None or labels_path is None:
        lacking = NAMES[split][0 if images_path is None else 1]
        raise DataError(
            f"data '{source}' has only half of its {split} split: {lacking}[.gz] is missing in {folder.absolute()}"
        )
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim < 3 or labels.ndim != 1:
        raise DataError(
            f"{images_path} must hold images and {labels_path} labels; got {images.shape} and {labels.shape}"
        )
    mean, std = constants if constants and images.ndim == 3 and len(constants[0]) == 1 else (None, None)
    return from_arrays(images, labels, classes, source=source, mean=mean, std=std)

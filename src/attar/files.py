"""Files that are either whole or not there: written aside, fsynced, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.errors import AttarError, DamagedFile

if TYPE_CHECKING:
    from torch import Tensor

_DEEPEST = 100  # levels of a JSON file; ours have under ten
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def home() -> Path:
    """Return the folder of cached stages, claims and calibration: `ATTAR_HOME`, else `~/.cache/attar`."""
    return Path(os.environ.get("ATTAR_HOME") or Path.home() / ".cache" / "attar")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write aside; on success it is fsynced and renamed to `path`, on failure it is removed.

    Raises:
        AttarError: the disk is full or the folder does not permit writing; what stood at `path` still stands.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            _fsync(aside)
            aside.replace(path)
            _fsync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the file system's errors of writing `path` into a message that says what to do.

    Raises:
        AttarError: the disk is full, the folder does not permit writing, or a part of the path is a file.
    """
    try:
        yield
    except AttarError:
        raise
    except Exception as error:
        if reason := _user_error(error, path):
            raise AttarError(reason) from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all; halves of characters (of odd file names) become `?`."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file as strictly as `write_json` writes one.

    Raises:
        DamagedFile: the file is not JSON, is nested more than 100 deep, or holds a number that no float can hold.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        _check_plain(value)
    except (ValueError, OSError, RecursionError) as error:
        raise DamagedFile(f"{path} is not readable as JSON ({error})") from None
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        DamagedFile: it holds something else, or what `read_json` refuses.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} does not hold a JSON object")
    return value


def mapping(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the mapping under a key of what was read; an empty one where there is none."""
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Save tensors as safetensors, whole or not at all; return the file's size in bytes and its SHA-256."""
    from safetensors.torch import save_file

    with replacing(path) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
        size, checksum = aside.stat().st_size, sha256(aside)
    return size, checksum


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file.

    Raises:
        DamagedFile: the file is missing, truncated or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with _undisturbed():
            return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"{path} does not read as safetensors ({error})") from None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back: safetensors takes what their handlers raise for a fault of the file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in came:
            signal.raise_signal(late)


def sha256(path: Path) -> str:
    """Return the SHA-256 hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        AttarError: the file system does not let folders be made there.
    """
    with explained(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:
            raise AttarError(f"{path} cannot be made: folders cannot be made there; choose another one") from None


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left aside in `folder` and below: files, and folders of artifacts."""
    for leftover in list(folder.rglob(".*.tmp")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _check_plain(value: Any, depth: int = 0) -> None:
    """Refuse what those who read a file would stumble over.

    Raises:
        ValueError: nested too deep, or a number that no float can hold.
    """
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise ValueError("it holds a number that is not finite, or too large")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_plain(item, depth + 1)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _user_error(error: BaseException, path: Path) -> str | None:
    """Say what the user can do about an error of the file system, if it is one of theirs to mend."""
    code = getattr(error, "errno", None)
    if code in _FULL or "No space left" in str(error) or "os error 28" in str(error) or "os error 27" in str(error):
        return (
            f"the disk is full: {path} could not be written. What was saved before is intact; "
            "free some space and give the same command again"
        )
    if code in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"no permission to write {path}; choose another folder with out=FOLDER"
    if code in {errno.ENOTDIR, errno.EEXIST}:
        return f"cannot write {path}: a part of that path is a file, not a folder; choose another with out=FOLDER"
    return None

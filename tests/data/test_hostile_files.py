"""Malformed files and URIs give a `DataError` and nothing else, and cost no more memory than the file is long."""

import contextlib
import gzip
import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attar.data.idx import read_idx
from attar.data.npz import read_npz
from attar.data.uri import parse, uri_slug
from attar.errors import DataError

few = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def npz_bytes(compress=True):
    images = np.zeros((4, 4, 4), np.uint8)
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, x=images, y=np.arange(4) % 2)
    return file.getvalue()


IDX = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 3) + bytes(18)
VALID = {"idx": IDX, "gz": gzip.compress(IDX, mtime=0)}
ARCHIVES = {True: npz_bytes(), False: npz_bytes(compress=False)}


@st.composite
def damaged(draw, whole):
    """Bytes of a valid file with some of them changed, cut off or added."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=3))


@few
@given(data=st.binary(max_size=64) | damaged(VALID["idx"]) | damaged(VALID["gz"]))
def test_any_bytes_are_an_idx_file_or_a_data_error(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        assert read_idx(path).nbytes <= len(data) * 1032


@few
@given(data=st.binary(max_size=64) | damaged(ARCHIVES[True]) | damaged(ARCHIVES[False]))
def test_any_bytes_are_an_npz_archive_or_a_data_error(tmp_path, data):
    path = tmp_path / "file.npz"
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        read_npz(path, "test")


@few
@given(
    header=st.text(max_size=60)
    | st.sampled_from(["{'descr': '|u1'}", "{" * 50, "(1" * 40, "-" * 9000, "(" * 190, "1L", "\n  x\n y"])
)
def test_any_npy_header_is_an_array_or_a_data_error(tmp_path, header):
    text = header.encode("latin1", "ignore")
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(8))
    with contextlib.suppress(DataError):
        read_npz(path, "test")


@few
@given(
    uri=st.text(max_size=30)
    | st.from_regex(r"(folder|npz|digits|hf):?[^\n]{0,8}\?(size|zca)?=?[^\n]{0,5}", fullmatch=True)
)
def test_any_text_is_a_uri_or_a_data_error(uri):
    with contextlib.suppress(DataError):
        assert parse(uri).kind in uri_slug(uri)


@contextlib.contextmanager
def allocating_at_most(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(60_000, 28, 28), (2**32 - 1,) * 3])
def test_an_idx_header_that_claims_too_much_allocates_nothing(tmp_path, shape, zipped):
    data = b"\0\0\x08\x03" + struct.pack(">3I", *shape) + bytes(100)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if zipped else data)
    with allocating_at_most(2**20), pytest.raises(DataError, match=r"claims .* more than the file can hold"):
        read_idx(path)


@pytest.mark.parametrize(("claim", "relation"), [(17, "more"), (19, "fewer")])
@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_file_of_another_length_than_its_header_says_is_refused(tmp_path, claim, relation, zipped):
    data = b"\0\0\x08\x01" + struct.pack(">I", claim) + bytes(18)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(DataError, match=f"{relation} bytes than|claims"):
        read_idx(path)


def test_a_gzip_bomb_is_not_inflated_beyond_its_header(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 10) + bytes(50_000_000)))
    with allocating_at_most(2**21), pytest.raises(DataError, match="more bytes than"):
        read_idx(path)


def test_an_npy_header_that_claims_too_much_allocates_nothing(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (60000, 28, 28), }".ljust(117) + b"\n"
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(100))
    with allocating_at_most(2**20), pytest.raises(DataError, match=r"claims \(60000, 28, 28\) of uint8"):
        read_npz(path, "test")


def test_idx_types_other_than_bytes_are_named(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\0\0\x0d\x01" + struct.pack(">I", 1) + bytes(4))
    with pytest.raises(DataError, match="type 0x0d"):
        read_idx(path)

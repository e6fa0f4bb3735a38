"""Float32 products of matrices through oneDNN, where that takes half the time and is as exact."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

import torch

from attar.run.provenance import processor

_EXACT, _ALLOWED = "highest", "medium"  # torch's names: products of float32 as such, or of values cut to bfloat16
_LOCK = threading.Lock()
_HOLDERS = set[object]()  # who is inside; the last one out puts the setting back


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Let torch multiply float32 matrices by oneDNN inside, where `pays` says so; elsewhere nothing happens.

    torch multiplies on the CPU by MKL, whose AVX-512 code is for Intel's processors alone; on AMD's oneDNN takes half
    the time. torch asks it only where products may be cut to bfloat16, and oneDNN cuts them on processors with AMX
    alone. A precision that the user has set stays.
    """
    holder = object()
    with _LOCK:
        if (_HOLDERS or _precision() == _EXACT) and pays():
            _HOLDERS.add(holder)
            torch.set_float32_matmul_precision(_ALLOWED)
    try:
        yield
    finally:
        with _LOCK:
            if holder in _HOLDERS:
                _HOLDERS.remove(holder)
                torch.set_float32_matmul_precision(_ALLOWED if _HOLDERS else _EXACT)


@functools.cache
def pays() -> bool:
    """Say whether this is an AMD processor with AVX-512, and no GPU, whose products the permission would cut."""
    if "AMD" not in processor() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    before = _precision()
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available() or before is None:
        return False
    torch.set_float32_matmul_precision(_ALLOWED)
    try:
        return _exact()
    finally:
        torch.set_float32_matmul_precision(before)


def _exact() -> bool:
    """Say whether a product has the digits of float32: bfloat16 leaves an error of three thousandths."""
    values = torch.linspace(0.0, 1000.0, 64 * 64, dtype=torch.float64).sin().view(64, 64)
    error = (values.float() @ values.float()).double() - values @ values
    return float(error.norm() / (values @ values).norm()) < 1e-5


def _precision() -> str | None:
    """Return torch's setting, or none where the user has set one for a part of torch."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None

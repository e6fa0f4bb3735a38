"""How much memory a computation takes: what its graph keeps for the backward pass, and the peak of the process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from attar.errors import RecipeError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_SAMPLE = 0.005  # seconds between two looks at the resident size where the kernel's high-water mark cannot be reset

_Block = tuple[torch.device, int]  # a storage, by where it lies; unique as long as it is held

_charged: list[SavedTensors] = []  # the open meters, outermost first: torch calls the innermost hooks only


@dataclass(frozen=True)
class SavedBytes:
    """What graphs kept for their backward passes, in bytes of storage."""

    peak: int  # most at one time
    total: int  # everything that was ever kept, a storage again each time it comes to be kept
    live: int  # kept now
    tensors: int  # number of times that autograd saved a tensor, parameters left out included

    def to_json(self) -> dict[str, int]:
        """Return plain values for a JSON file."""
        return asdict(self)


class SavedTensors:
    """Measure the tensors that autograd saves for the backward pass while the block runs.

    Each storage counts once, whole, however many views of it are saved, and until the last node that saved it lets go:
    after a backward without `retain_graph`, or when its graph is dropped, also behind the block. Graphs of gradients
    (`create_graph=True`) are counted like any other. Blocks may nest; each sees what happens inside it. Gradients,
    results and what a custom function or a closure holds by itself are not saved tensors: see `peak_memory`. Inside
    `torch.utils.checkpoint` and `save_on_cpu` torch calls their hooks instead, and nothing is counted.

    Args:
        parameters: count the storages of `nn.Parameter`s as well; they are there with or without a graph.
        exclude: tensors or modules whose storages do not count either, such as a data set that batches are views of.

    >>> x = torch.ones(100, requires_grad=True)
    >>> with SavedTensors() as saved:
    ...     y = x.exp().exp()
    >>> saved.peak  # bytes of two float32 results
    800
    """

    def __init__(self, *, parameters: bool = False, exclude: tuple[Tensor | nn.Module, ...] = ()) -> None:
        self.parameters = parameters
        self._exclude = exclude
        self._excluded: set[_Block] = set()
        self._holders: dict[_Block, int] = {}  # storage -> how many saved tensors hold it
        self._lock = threading.RLock()  # a GPU's backward runs, and frees, in a thread of its own
        self._hooks: list[saved_tensors_hooks] = []
        self.peak = self.total = self.live = self.tensors = 0

    def __enter__(self) -> Self:
        if self._hooks:
            raise RecipeError("this SavedTensors block is open already; nest another SavedTensors() instead")
        # the tensors are held by `self._exclude`, so that their addresses cannot be given to others
        self._excluded = {block for tensor in _tensors(self._exclude) for block, _ in _storages(tensor)}
        _charged.append(self)
        hooks = saved_tensors_hooks(_pack, _unpack)
        hooks.__enter__()
        self._hooks.append(hooks)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.pop().__exit__(*error)
        _charged.remove(self)

    def result(self) -> SavedBytes:
        """Return the measurements so far."""
        return SavedBytes(peak=self.peak, total=self.total, live=self.live, tensors=self.tensors)

    def _counts(self, tensor: Tensor) -> bool:
        owner = tensor if tensor._base is None else tensor._base
        return self.parameters or not isinstance(owner, nn.Parameter)

    def _hold(self, blocks: list[tuple[_Block, int]]) -> None:
        with self._lock:
            for block, size in blocks:
                if block in self._excluded:
                    continue
                held = self._holders.get(block, 0)
                self._holders[block] = held + 1
                if not held:
                    self.live += size
                    self.total += size
            self.peak = max(self.peak, self.live)

    def _let_go(self, blocks: list[tuple[_Block, int]]) -> None:
        with self._lock:
            for block, size in blocks:
                if block in self._excluded:
                    continue
                self._holders[block] -= 1
                if not self._holders[block]:
                    del self._holders[block]
                    self.live -= size


class _Saved:
    """What a node of the graph holds in place of a tensor; it goes when the node lets go of it."""

    __slots__ = ("blocks", "meters", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # the tensor itself may be the node's own result: a cycle that is never freed
        self.version = tensor._version
        self.blocks = _storages(tensor)
        self.meters = [meter for meter in _charged if meter._counts(tensor)]
        for meter in self.meters:
            meter._hold(self.blocks)

    def __del__(self) -> None:
        for meter in getattr(self, "meters", ()):
            meter._let_go(self.blocks)


def _pack(tensor: Tensor) -> _Saved:
    for meter in _charged:
        meter.tensors += 1
    return _Saved(tensor)


def _unpack(saved: _Saved) -> Tensor:
    if saved.tensor._version != saved.version:  # torch leaves this check to the hooks
        raise RuntimeError(
            "a tensor needed for the backward pass was changed in place after it was saved: "
            f"shape {tuple(saved.tensor.shape)}, version {saved.tensor._version}, expected {saved.version}. "
            "Change a clone of it, or use the form that is not in place"
        )
    return saved.tensor


def _storages(tensor: Tensor) -> list[tuple[_Block, int]]:
    """Return (place, bytes) of the storages behind a tensor; a sparse one has several, an empty one none."""
    if tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        parts = [tensor]
    storages = [part.untyped_storage() for part in parts]
    return [((storage.device, storage.data_ptr()), storage.nbytes()) for storage in storages if storage.nbytes()]


def _tensors(things: tuple[Tensor | nn.Module, ...]) -> Iterator[Tensor]:
    for thing in things:
        if isinstance(thing, nn.Module):
            yield from thing.parameters()
            yield from thing.buffers()
        else:
            yield thing


@dataclass
class MemoryPeak:
    """Peaks of a block, in bytes; filled in when the block ends."""

    before: int = 0  # resident when it began
    process: int = 0  # most that was resident inside it
    cuda_before: int = 0  # allocated by torch on all CUDA devices when it began
    cuda: int = 0  # sum over CUDA devices of the most that torch had allocated
    how: str = ""  # "reset": the kernel's mark; "sampled": a look every 5 ms; "lifetime": of the process since it began

    @property
    def rise(self) -> int:
        """How far the process grew over where it began."""
        return max(0, self.process - self.before)

    @property
    def cuda_rise(self) -> int:
        """How far the allocations on CUDA devices grew over where they began."""
        return max(0, self.cuda - self.cuda_before)

    def to_json(self) -> dict[str, int | str]:
        """Return plain values for a JSON file."""
        return {**asdict(self), "rise": self.rise, "cuda_rise": self.cuda_rise}


_open: list[MemoryPeak] = []  # outermost first: an inner block resets the marks that the outer ones rely on


@contextmanager
def peak_memory() -> Iterator[MemoryPeak]:
    """Measure the most memory that this process holds while the block runs, on the host and on CUDA devices.

    On Linux the kernel keeps the mark (`VmHWM`), which is reset here; where it keeps none, or it may not be reset, a
    thread looks every 5 ms and can miss a short peak; elsewhere the peak of the whole life of the process is all there
    is. Blocks may nest. Resident memory counts whole pages that were touched: pages freed before the block, and kept by
    the allocator, are used again without a rise, so compare peaks between fresh processes that differ in one thing.
    """
    peak = MemoryPeak()
    _look()
    _reset_cuda()
    peak.cuda_before = _cuda(torch.cuda.memory_allocated)
    peak.how = "lifetime" if not _STATUS.exists() else "reset" if _field("VmHWM") and _reset_mark() else "sampled"
    peak.before = _resident("VmRSS")
    _open.append(peak)
    done = threading.Event()
    watcher = threading.Thread(target=_sample, args=(peak, done), daemon=True)
    if peak.how == "sampled":
        watcher.start()
    try:
        yield peak
    finally:
        _look()
        _open.remove(peak)
        done.set()
        if peak.how == "sampled":
            watcher.join()


def _look() -> None:
    """Raise the peaks of all open blocks to the marks as they stand."""
    if not _open:
        return
    cuda = _cuda(torch.cuda.max_memory_allocated)
    for peak in _open:
        peak.process = max(peak.process, _resident("VmRSS" if peak.how == "sampled" else "VmHWM"))
        peak.cuda = max(peak.cuda, cuda)


def _sample(peak: MemoryPeak, done: threading.Event) -> None:
    while not done.wait(_SAMPLE):
        peak.process = max(peak.process, _resident("VmRSS"))


def _reset_mark() -> bool:
    try:
        _CLEAR.write_text("5")  # proc(5): reset the peak resident set size to what is resident now
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    """Return `VmRSS` (now) or `VmHWM` (the mark) in bytes; without /proc the peak since the process began."""
    if _STATUS.exists():
        return _field(field)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _field(name: str) -> int:
    """Return a field of /proc/self/status in bytes; 0 where this kernel does not tell it."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_cuda() -> None:
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def _cuda(measure: Any) -> int:
    """Return the sum over CUDA devices; asking starts no device that is not in use."""
    if not torch.cuda.is_initialized():
        return 0
    return sum(int(measure(device)) for device in range(torch.cuda.device_count()))

"""A device that is not there: tensors are computed here, and those made for "cuda" may not meet others.

torch's own fake tensors do not serve: without CUDA they cannot be indexed, and what a method asks of values they lack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HERE, THERE = torch.device("cpu"), torch.device("cuda")
ANYWHERE = None  # of what torch makes inside of itself, by the options of a tensor that is here in truth
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
MOVING = ("aten::copy_", "aten::_to_copy")

_places: dict[int, tuple[Any, Any]] = {}  # address of a storage -> (the storage, so that it stays, and its device)


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Let "cuda" be a device inside: a RuntimeError tells where a real one would refuse to go on."""
    try:
        with _Made(), _Met():
            yield
    finally:
        _places.clear()


def place(x: Tensor) -> torch.device | None:
    """Return the device that a tensor counts as lying on."""
    return _places.get(_storage(x)._cdata, (None, HERE))[1]


def _put(x: Tensor, device: torch.device | None) -> Tensor:
    storage = _storage(x)
    _places[storage._cdata] = (storage, device)
    return x


def _storage(x: Tensor) -> Any:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.untyped_storage()


def _tensors(*given: Any) -> list[Tensor]:
    return [x for x in tree_leaves(given) if isinstance(x, Tensor)]


class _Met(TorchDispatchMode):
    """Below autograd: what an operation gives lies where its tensors do, which must be one device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = _common(func, args, _tensors(args, kwargs), tree_leaves((args, kwargs)))
        out = func(*args, **kwargs)
        given = _tensors(args, kwargs)
        for x in _tensors(out):
            if place(x) is ANYWHERE or not any(x is y for y in given):
                _put(x, device)
        return out


def _common(func: Any, args: Any, given: Sequence[Tensor], leaves: Sequence[Any]) -> torch.device | None:
    """Return where the result of an operation lies; indices may lie here, and so may a single number."""
    name = func._schema.name
    if not given:
        return ANYWHERE
    if name in MOVING:
        return place(args[0])
    if name in INDEXING:
        if place(args[0]) == HERE and any(place(x) == THERE for x in _tensors(args[1])):
            raise RuntimeError(f"{func}: indices on another device index a tensor that is here")
        given = [args[0], *_tensors(args[2:])]
    places = [place(x) for x in given]
    if THERE not in places:
        return HERE if HERE in places else ANYWHERE
    if any(at == HERE and x.dim() for x, at in zip(given, places, strict=True)):
        shapes = ", ".join(f"{list(x.shape)} on {at}" for x, at in zip(given, places, strict=True))
        raise RuntimeError(f"{func}: tensors on two devices: {shapes}")
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{func}: a generator that is here cannot draw on another device")
    return THERE


class _Made(TorchFunctionMode):
    """Above autograd: tensors are made and moved to the device that is asked for, and say that they lie there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return place(args[0]) or HERE
        if name == "numpy" and place(args[0]) == THERE:
            raise RuntimeError("a tensor on another device is no array: bring it here with cpu()")
        if name == "cpu":
            return _moved(args[0], HERE)
        if name == "to":
            return _to(*args, **kwargs)
        if name in ("__deepcopy__", "new_tensor"):
            return _put(func(*args, **kwargs), place(args[0]))
        device = _device(kwargs.get("device"))
        if device == THERE:
            if kwargs.get("generator") is not None:
                raise RuntimeError(f"{name}: a generator that is here cannot draw on another device")
            kwargs["device"] = HERE
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and (device or (place(out) is ANYWHERE and not _tensors(args, kwargs))):
            _put(out, device or HERE)
        return out


def _device(told: Any) -> torch.device | None:
    return torch.device(told) if isinstance(told, torch.device) or told in ("cpu", "cuda") else None


def _to(x: Tensor, *given: Any, **options: Any) -> Tensor:
    told = [*given, *options.values()]
    device = next((d for d in (_device(t) for t in told if not isinstance(t, Tensor)) if d), place(x))
    dtype = next((t for t in told if isinstance(t, torch.dtype)), x.dtype)
    for other in _tensors(told):
        device, dtype = place(other), other.dtype
    with torch._C.DisableTorchFunction():
        x = x.to(dtype)
    return _moved(x, device)


def _moved(x: Tensor, device: torch.device | None) -> Tensor:
    return x if place(x) == device else _put(x.clone(), device)

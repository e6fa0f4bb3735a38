"""State as one tree: nested containers of tensors and JSON values, packed for a checkpoint and restored from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

T = TypeVar("T")
Place = tuple[Any, ...]  # where a tensor lies in memory, and how


@runtime_checkable
class Stateful(Protocol):
    """Anything that can be saved and restored in place."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state as a tree of tensors and JSON values."""

    def load_state_dict(self, state: Any) -> Any:
        """Restore the state in place."""


class Kept(Generic[T]):
    """An immutable value (number, string, tuple, JSON) that a run keeps: read and write `.value`.

    >>> count = Kept(0)
    >>> count.value += 1
    >>> count.value
    1
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        """Return the value under its one key."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the value."""
        self.value = state["value"]


class KeptTensor:
    """A tensor that a run keeps, restored in place."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def state_dict(self) -> dict[str, Any]:
        """Return the tensor under its one key."""
        return {"tensor": self.tensor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the saved values into the live tensor."""
        with torch.no_grad():
            self.tensor.copy_(state["tensor"])


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Turn a tree into JSON, moving its tensors into `tensors` under their paths.

    Tensors that are the same memory (tied weights) are stored once.

    Raises:
        TypeError: the tree holds something that is neither container, tensor nor JSON value.
    """
    return _pack(value, tensors, path, {_place(tensor): name for name, tensor in tensors.items() if tensor.numel()})


def _pack(value: Any, tensors: dict[str, Tensor], path: str, places: dict[Place, str]) -> Any:
    if isinstance(value, Tensor):
        return {"$tensor": _store(value, tensors, path, places)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _pack(item, tensors, f"{path}.{key}", places) for key, item in value.items()}
        return {
            "$pairs": [
                [_pack(k, tensors, "", places), _pack(v, tensors, f"{path}.{k}", places)] for k, v in value.items()
            ]
        }
    if isinstance(value, tuple | list):
        items = [_pack(item, tensors, f"{path}.{i}", places) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state at '{path.lstrip('.')}' is a {type(value).__name__}; keep tensors and JSON values only")


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Turn what `pack` gave back into the tree."""
    if isinstance(tree, list):
        return [unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"$tensor": name}:
            value: Any = tensors[name]
        case {"$pairs": pairs}:
            value = {unpack(key, tensors): unpack(item, tensors) for key, item in pairs}
        case {"$tuple": items}:
            value = tuple(unpack(item, tensors) for item in items)
        case {"$float": text}:
            value = float(text)
        case _:
            value = {key: unpack(item, tensors) for key, item in tree.items()}
    return value


def _store(tensor: Tensor, tensors: dict[str, Tensor], path: str, places: dict[Place, str]) -> str:
    tensor = tensor.detach()
    if tensor.numel() and (known := places.get(_place(tensor))) is not None:
        return known
    if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    name = path.lstrip(".") or "value"
    while name in tensors:  # a dot in a key makes two paths look alike
        name += "'"
    tensors[name] = tensor
    if tensor.numel():
        places[_place(tensor)] = name  # of what is stored, and so lives on: memory of the rest may come again
    return name


def _place(tensor: Tensor) -> Place:
    """Return what two tensors that are the same memory share."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device

"""A student whose weights are codes: a few values a bucket, with the scales that give them their size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from attar.artifacts.student import Student
from attar.nets.quantisation import Coded, stored_bytes

_PARTS = ("codes", "scale", "shift", "points")


class QuantizedStudent(Student):
    """A network and the codes of its parameters; what is not coded, such as batch statistics, is stored as it is.

    Attributes:
        coded: name of a parameter to its codes; the module holds their values.
    """

    kind: ClassVar[str] = "quantized-student"
    coded: Mapping[str, Coded]

    @classmethod
    def of(cls, student: Student, coded: Mapping[str, Coded]) -> Self:
        """Return a student with the codes of its parameters."""
        self = cls(student.module, student.net, student.channels, student.size, student.classes)
        self.coded = dict(coded)
        return self

    @property
    def bytes(self) -> int:
        """Bytes of Huffman codes, scales, shifts and points, and of what is not coded."""
        rest = sum(t.numel() * t.element_size() for name, t in super().tensors().items() if name not in self.coded)
        return stored_bytes(self.coded) + rest

    def tensors(self) -> dict[str, Tensor]:
        """Return codes, scales, shifts and points by parameter, and everything that is not coded."""
        found = {name: tensor for name, tensor in super().tensors().items() if name not in self.coded}
        for name, one in self.coded.items():
            found |= {f"{name}:{part}": getattr(one, part) for part in _PARTS}
        return found

    def about(self) -> dict[str, Any]:
        """Return how the network is built and how its parameters are cut into buckets."""
        cut = {name: {"bucket": one.bucket, "shape": list(one.shape)} for name, one in self.coded.items()}
        return {**super().about(), "coded": cut}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Decode the parameters and build the network around them.

        Raises:
            ValueError: codes that are no bytes or name a point that does not exist, or scales that do not fit.
        """
        whole = {name: tensor for name, tensor in tensors.items() if ":" not in name}
        coded = {}
        for name, cut in about["coded"].items():
            parts = {part: tensors[f"{name}:{part}"] for part in _PARTS}
            coded[name] = Coded(**parts, bucket=cut["bucket"], shape=tuple(cut["shape"]))
            _check(name, coded[name])
            whole[name] = coded[name].decode()
        return cls.of(Student.rebuild(about, whole), coded)


def _check(name: str, one: Coded) -> None:
    count = torch.Size(one.shape).numel()
    rows = 1 if one.bucket is None else -(-count // one.bucket)
    fits = one.codes.shape == (count,) and one.scale.shape == one.shift.shape == (rows,) and one.points.dim() == 1
    if one.codes.dtype != torch.uint8 or not fits or not count:
        raise ValueError(f"the codes of '{name}' do not fit its shape {list(one.shape)}")
    if int(one.codes.max()) >= len(one.points):
        raise ValueError(f"a code of '{name}' names a point that does not exist")

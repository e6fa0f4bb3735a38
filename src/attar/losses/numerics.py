"""What the formulas share: enough precision, 0 · log 0, lengths with a derivative at zero, and shapes that pair up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attar.errors import RecipeError


def widened(values: Tensor) -> Tensor:
    """Return half-precision values as float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def weighed(probabilities: Tensor, log_values: Tensor) -> Tensor:
    """Return p · v with 0 · (−inf) = 0; masked before the product, so that gradients stay finite as well."""
    return probabilities * log_values.masked_fill(probabilities == 0, 0.0)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product a b in the precision of its factors, which autocast would halve."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def lengths(vectors: Tensor, dim: int = -1) -> Tensor:
    """Return ‖v‖₂ along `dim`, which is kept with size 1; a zero vector has the gradient 0, not NaN."""
    largest = vectors.detach().abs().amax(dim, keepdim=True) if vectors.shape[dim] else vectors.new_ones(())
    scale = largest.masked_fill(largest == 0, 1.0)  # neither overflow nor underflow of the squares
    squares = (vectors / scale).square().sum(dim, keepdim=True)
    zero = squares == 0
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0) * scale


def directions(vectors: Tensor, dim: int = -1) -> Tensor:
    """Return v / ‖v‖₂ along `dim`; a zero vector stays zero and has the gradient 0."""
    length = lengths(vectors, dim)
    return vectors / length.masked_fill(length == 0, math.inf)


def centred(values: Tensor, dim: int) -> Tensor:
    """Return the values less their mean along `dim`: exactly zero, with the gradient 0, where all of them are equal.

    A mean is off by rounding, and what that leaves of equal values would look like a direction.
    """
    equal = (values == values.narrow(dim, 0, 1)).all(dim, keepdim=True)
    return (values - values.mean(dim, keepdim=True)).masked_fill(equal, 0.0)


def paired(student: Tensor, teacher: Tensor, what: str, dims: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Return both tensors widened, once they are known to have one shape, so that nothing broadcasts unseen.

    `what` names the tensors in the message; `dims` are the numbers of dimensions allowed, any if empty.

    Raises:
        RecipeError: shapes that differ, or a number of dimensions that is not allowed.
    """
    if student.shape != teacher.shape:
        raise RecipeError(
            f"{what} of student and teacher need one shape; got {list(student.shape)} and {list(teacher.shape)}. "
            "Put a projector on the student where the sizes differ"
        )
    if dims and student.dim() not in dims:
        allowed = " or ".join(str(d) for d in dims)
        raise RecipeError(f"{what} need {allowed} dimensions; got the shape {list(student.shape)}")
    return widened(student), widened(teacher)


def batched(student: Tensor, teacher: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return both as matrices `[n, …]`, widened and flattened behind the batch, which is the one size they must share.

    Raises:
        RecipeError: batches that differ in size, or a tensor without features.
    """
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise RecipeError(
            f"{what} of student and teacher are [n, …] for the same n samples; "
            f"got {list(student.shape)} and {list(teacher.shape)}"
        )
    return widened(student).flatten(1), widened(teacher).flatten(1)


def positive(value: float, name: str) -> float:
    """Return `value`, once it is known to be above zero.

    Raises:
        RecipeError: zero, a negative number or NaN.
    """
    if not value > 0:
        raise RecipeError(f"{name} must be positive; got {value}")
    return value

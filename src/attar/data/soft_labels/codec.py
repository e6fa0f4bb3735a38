"""How one row of teacher output is written: dense log-probabilities, or the top k probabilities with the rest in one.

Dense rows hold log-probabilities in half precision: a temperature can still be applied when they are read, and the
error is largest where the probability is smallest. Top-k rows hold the k largest probabilities with their classes and
the mass of all others as one number; a temperature cannot be applied to them afterwards (it would need the logits of
the rest), so it is refused.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.errors import DamagedFile, DataError, NonFinite, RecipeError
from attar.spec import spec

MAX_CLASSES = 2**24  # above any vocabulary; a file that claims more is refused before anything is allocated
ROUNDOFF = 2.0**-11  # relative, of half precision rounded to nearest
SUBNORMAL = 2.0**-25  # absolute, below 2^-14
ARITHMETIC = 2.0**-20  # what float32 sums and quotients may add, generously
LOWEST = -65504.0  # of half precision: log-probabilities below it, −inf included, are stored as this


@spec
class Codec:
    """The form of a store's rows."""

    classes: int = Field(ge=1, le=MAX_CLASSES)  # length of the last dimension: classes, or a vocabulary
    top_k: int | None = Field(None, ge=1)  # probabilities kept a row; none: dense

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.top_k is not None and self.top_k > self.classes:
            raise ValueError(f"top_k={self.top_k} is more than the {self.classes} classes there are")
        return self

    @property
    def record(self) -> np.dtype[Any]:
        """The little-endian NumPy type of one row: `key`, then `values`, or `classes`, `values` and `tail`."""
        if self.top_k is None:
            return np.dtype([("key", "<u8"), ("values", "<f2", (self.classes,))])
        index = "<u2" if self.classes <= 2**16 else "<u4"
        kept = (self.top_k,)
        return np.dtype([("key", "<u8"), ("classes", index, kept), ("values", "<f2", kept), ("tail", "<f2")])

    def encode(self, keys: np.ndarray, logits: Tensor) -> np.ndarray:
        """Return records `[n]` of teacher logits `[n, classes]` under `keys` `[n]`.

        Raises:
            DataError: the logits are of another shape than the store's.
            NonFinite: a row of logits is no distribution (NaN, +inf, or nothing but −inf).
        """
        if logits.dim() != 2 or logits.shape != (len(keys), self.classes):
            raise DataError(
                f"this store takes {len(keys)} rows of {self.classes} values; got logits of shape "
                f"{list(logits.shape)}. Flatten tokens into rows first"
            )
        logs = logits.detach().float().log_softmax(-1).cpu()
        if bool(logs.isnan().any()):
            row = int(logs.isnan().any(-1).nonzero()[0])
            raise NonFinite(f"the teacher's output for row {row} of this batch is NaN or infinite; nothing was stored")
        records = np.empty(len(keys), self.record)
        records["key"] = keys
        if self.top_k is None:
            records["values"] = logs.clamp_min(LOWEST).half().numpy()
            return records
        shares = logs.exp()
        values, classes = shares.topk(self.top_k, dim=-1)
        records["classes"] = classes.numpy()
        records["values"] = values.half().numpy()
        # summed, not 1 minus the rest: a tail of 1e-6 would drown in the rounding of that difference
        records["tail"] = shares.scatter_(-1, classes, 0.0).sum(-1).half().numpy()
        return records

    def decode(self, records: np.ndarray, *, temperature: float = 1.0, prior: Tensor | None = None) -> Tensor:
        """Return float32 probabilities `[n, classes]` of records.

        Args:
            records: `[n]` of type `record`.
            temperature: above 0; of the softmax over dense rows, and 1 for top-k rows.
            prior: `[classes]`, how the tail is spread in top-k rows; see `densify`.

        Raises:
            RecipeError: a temperature that these rows cannot take.
            DamagedFile: a row holds no distribution (a class out of range, a negative value, NaN).
        """
        if not temperature > 0 or (self.top_k is not None and temperature != 1.0):
            raise RecipeError(
                f"temperature={temperature}: dense rows take any above 0, top-k rows only 1, because the logits of the "
                "rest are gone; store dense rows to soften them later"
            )
        values = torch.from_numpy(records["values"].astype(np.float32))
        if self.top_k is None:
            if not bool(values.isfinite().all()):
                raise DamagedFile("a row of the soft-label store holds NaN or infinity; label the data again")
            return (values / temperature).softmax(-1)
        classes = torch.from_numpy(records["classes"].astype(np.int64))
        tail = torch.from_numpy(records["tail"].astype(np.float32))
        fine = (values >= 0).all() & values.isfinite().all() & (tail >= 0).all() & tail.isfinite().all()
        mass = values.sum(-1) + tail * (self.top_k < self.classes)
        if len(records) and not (bool(fine & (mass > 0).all()) and int(classes.max()) < self.classes):
            raise DamagedFile("a row of the soft-label store is no distribution; label the data again")
        return densify(classes, values, tail, self.classes, prior=prior)


def densify(indices: Tensor, values: Tensor, tail: Tensor, classes: int, *, prior: Tensor | None = None) -> Tensor:
    """Return float32 probabilities `[…, classes]` of the k kept ones and the mass of the rest.

    p[indices] = values; every other class gets `tail / (classes − k)`, or the share `prior[c] / Σ prior of the others`
    of the tail; the row is then divided by its sum, because half precision rounds. Dataset Reinforcement's "smooth"
    (Faghri et al. 2023, arXiv 2303.08983); leaving the others at zero would teach certainty that nobody measured.

    Args:
        indices: `[…, k]` int64 in [0, classes), distinct in a row.
        values: `[…, k]` probabilities of those classes, at least 0.
        tail: `[…]` mass of all other classes, at least 0.
        classes: length of the last dimension of the result.
        prior: `[classes]`, above 0, of any scale; none: uniform.

    Raises:
        DataError: the prior has another length or a value that is not above 0.
    """
    rest = classes - indices.shape[-1]
    tail = tail.float().unsqueeze(-1)
    if prior is None:
        dense = (tail / max(rest, 1)).repeat(*([1] * (indices.dim() - 1)), classes)
    else:
        if prior.shape != (classes,) or not bool((prior > 0).all() & prior.isfinite().all()):
            raise DataError(f"the prior over the tail needs {classes} finite values above 0; got {list(prior.shape)}")
        weights = prior.float().expand(*indices.shape[:-1], classes).clone().scatter_(-1, indices, 0.0)
        dense = weights * (tail / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
    dense.scatter_(-1, indices, values.float())
    return dense.div_(dense.sum(-1, keepdim=True))


def top_k_error_bound(tail: float, top_k: int, classes: int) -> float:
    """Return the largest total variation between a teacher's probabilities and what comes back of their top k.

    ½ Σ|p − q| ≤ tail · (1 − 1 / (classes − k)) + 2⁻¹¹ + (k + 1) · 2⁻²⁵ + 2⁻²⁰, with `tail` the mass outside the top k:
    the most a distribution on classes − k points differs from the uniform one, the relative and the subnormal rounding
    of half precision (once for the values, once for dividing by their sum, each halved), and float32 arithmetic. With a
    prior instead of the uniform spread the first term is `tail`.

    >>> round(top_k_error_bound(0.05, 10, 1000), 4)
    0.0504
    """
    spread = tail * (1 - 1 / (classes - top_k)) if classes > top_k else 0.0
    return spread + ROUNDOFF + (top_k + 1) * SUBNORMAL + ARITHMETIC


def dense_error_bound(entropy: float | None = None, *, classes: int) -> float:
    """Return the largest total variation between a teacher's probabilities and what comes back of a dense row.

    ½ Σ|p − q| ≤ 1.03 · 2⁻¹¹ · H(p) + 2⁻²⁰, H in nats (at most ln classes, which is taken where it is not given): a
    log-probability is off by at most 2⁻¹¹ of itself, and Σ p |log p| is the entropy; 1.03 covers eᵋ − 1 > ε. Holds at
    temperature 1.

    >>> round(dense_error_bound(classes=1000), 5)
    0.00348
    """
    return 1.03 * ROUNDOFF * (math.log(classes) if entropy is None else entropy) + ARITHMETIC

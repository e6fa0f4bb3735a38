"""What synthetic data must share with real data: mean embeddings (DM) and gradients (DC)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError, did_you_mean

GradientDistance = Literal["rows", "mse", "cosine"]


def mean_embedding_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return Σ_c ‖sg(mean_n real_c) − mean_m synthetic_c‖², summed over classes and features.

    `real` `[classes, n, features]`, `synthetic` `[classes, m, features]`; no gradient flows to `real`
    (Zhao & Bilen 2023, arXiv 2110.04181, equation 5).
    """
    return squared_mean_distance(real.detach().mean(1), synthetic.mean(1))


def squared_mean_distance(real_mean: Tensor, synthetic_mean: Tensor) -> Tensor:
    """Return Σ_c ‖sg(real_mean_c) − synthetic_mean_c‖² for class means `[classes, features]` computed elsewhere."""
    return (real_mean.detach() - synthetic_mean).square().sum()


def attention_maps(maps: Tensor, power: float = 4.0) -> Tensor:
    """Return where images excite a layer: Σ_channels |f|^p, each image's map divided by its own length.

    `maps` `[n, channels, height, width]`, of any real numbers; the result `[n, height · width]` has rows of length 1,
    or of zeros where an image excites nothing. `power` is p, at least 1
    (Sajedi et al. 2023, arXiv 2310.00093, section 3.1).

    Raises:
        RecipeError: maps without height and width, or a power below 1.
    """
    if maps.dim() != 4:
        shape = list(maps.shape)
        raise RecipeError(
            f"attention is over the places of a map [n, channels, height, width]; got one of shape {shape}"
        )
    if not power >= 1:
        raise RecipeError(f"the power of an attention map is at least 1; got {power}")
    # The squares' power is many times as fast for p = 4; below 2 its derivative at zero would be infinite.
    strength = maps.square().pow(power / 2) if power >= 2 else maps.abs().pow(power)
    return functional.normalize(strength.sum(1).flatten(1), dim=1)


def gradient_distance(synthetic: Sequence[Tensor], real: Sequence[Tensor], kind: GradientDistance = "rows") -> Tensor:
    """Return the distance between two gradients of one network, given tensor by tensor in the same order.

    No gradient flows to `real`. Kinds (Zhao et al. 2021, arXiv 2006.05929, equation 10 and its variants):

    - "rows": Σ over tensors of ≥ 2 dimensions, flattened to (out, rest), and over their rows, of
      1 − ⟨a, b⟩ / (‖a‖ ‖b‖ + 1e-6). Biases and norm parameters count nothing.
    - "mse": Σ (a − b)² over everything.
    - "cosine": 1 − ⟨a, b⟩ / (‖a‖ ‖b‖ + 1e-6) of everything as one vector.

    Derivatives of every order are finite where a row is zero.

    Raises:
        RecipeError: an unknown kind, or tensors that do not pair up.
    """
    if [a.shape for a in synthetic] != [b.shape for b in real]:
        raise RecipeError("gradients pair up tensor by tensor: both sequences need the same shapes in the same order")
    pairs = [(a, b.detach()) for a, b in zip(synthetic, real, strict=True)]
    if kind == "rows":
        terms = [_row_distance(a.flatten(1), b.flatten(1)) for a, b in pairs if a.dim() >= 2]
    elif kind == "mse":
        terms = [(a - b).square().sum() for a, b in pairs]
    elif kind == "cosine":
        vectors = [torch.cat([t.flatten() for t in side]) for side in zip(*pairs, strict=True)]
        terms = [_row_distance(vectors[0][None], vectors[1][None])]
    else:
        hint = did_you_mean(str(kind), ["rows", "mse", "cosine"])
        raise RecipeError(f"unknown gradient distance {kind!r}{hint} It is 'rows', 'mse' or 'cosine'")
    if not terms:
        raise RecipeError(f"nothing to compare: the distance '{kind}' got no tensor that counts")
    return torch.stack(terms).sum()


def _row_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return Σ_rows 1 − ⟨a, b⟩ / (‖a‖ ‖b‖ + 1e-6) of matrices `[rows, columns]`."""
    return (1.0 - (a * b).sum(1) / (_norm(a) * _norm(b) + 1e-6)).sum()


def _norm(rows: Tensor) -> Tensor:
    """Return the length of each row; zero rows have zero derivatives, where the square root alone would give NaN."""
    squares = rows.square().sum(1)
    zero = squares == 0
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)

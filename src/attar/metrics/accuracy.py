"""How often a classifier is right, and whether its confidence says so."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import DataError, RecipeError


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share in [0, 1] of samples whose largest logit is at their label.

    `logits` `[n, classes]` (or probabilities), `labels` integers `[n]`. A sample with a NaN among its logits is wrong.

    Raises:
        DataError: no samples, or shapes that do not fit.
    """
    _check(logits, labels)
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return right.double().mean().item()


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return Σ_b (n_b / n) |accuracy_b − confidence_b| over equal-width bins of confidence, in [0, 1].

    `probabilities` `[n, classes]`, rows summing to 1; `labels` integers `[n]`. Confidence is the largest probability;
    bin b holds ((b − 1)/bins, b/bins] (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Raises:
        DataError: no samples, shapes that do not fit, or rows that are no probabilities.
        RecipeError: fewer than one bin.
    """
    _check(probabilities, labels)
    if bins < 1:
        raise RecipeError(f"bins must be at least 1; got {bins}")
    values = probabilities.double()
    if not ((values >= 0).all() and ((values.sum(1) - 1).abs() < 1e-2).all()):
        raise DataError("expected probabilities: non-negative rows that sum to 1. Apply softmax to logits first")
    confidence, predicted = values.max(1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (predicted == labels).double() - confidence
    sums = torch.zeros(bins, dtype=torch.double, device=gap.device).index_add_(0, bin_of, gap)
    return (sums.abs().sum() / len(labels)).item()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of −log softmax(logits)[label] in nats, in float64; at least 0, log(classes) for a guess.

    `logits` `[n, classes]`, `labels` integers `[n]`. A proper score: it is least for the true probabilities.

    Raises:
        DataError: no samples, or shapes that do not fit.
    """
    _check(logits, labels)
    return torch.nn.functional.cross_entropy(logits.double(), labels).item()


def _check(scores: Tensor, labels: Tensor) -> None:
    """Refuse shapes other than `[n, classes]` and `[n]` with n ≥ 1."""
    if scores.dim() != 2 or labels.shape != scores.shape[:1]:
        raise DataError(
            f"expected scores [n, classes] and labels [n]; got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if not len(labels):
        raise DataError("there is no sample to measure on")

"""Distances between class distributions given as logits: cross-entropies and Kullback–Leibler divergence.

Logits are `[n, classes]`, or `[…, classes]` with any number of leading dimensions. Half-precision logits are taken to
float32 first, so that neither a small temperature nor the exponentials overflow; results are float32 (or float64).
Gradients flow to every argument: detach the teacher where it is fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses.reduction import Reduction, reduce


def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Return −log softmax(logits)[label], the labels smoothed towards the uniform distribution.

    `labels` are integers `[…]` in [0, classes). Target: (1 − s) · one-hot + s / classes, with s in [0, 1]
    (Szegedy et al. 2016, arXiv 1512.00567, section 7).

    Raises:
        RecipeError: `label_smoothing` outside [0, 1], or an unknown reduction.
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise RecipeError(f"label_smoothing is a share between 0 and 1; got {label_smoothing}")
    log_probabilities = functional.log_softmax(_widened(logits), dim=-1)
    values = -log_probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        values = (1.0 - label_smoothing) * values - label_smoothing * log_probabilities.mean(-1)
    return reduce(values, reduction)


def soft_cross_entropy(logits: Tensor, target_probabilities: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return −Σ_k p_k log softmax(logits)_k for target probabilities `[…, classes]`.

    Classes of zero target weigh nothing, even where their logit is −inf. "mean" is over samples.

    Raises:
        RecipeError: an unknown reduction.
    """
    target = _widened(target_probabilities)
    log_probabilities = functional.log_softmax(_widened(logits), dim=-1)
    return reduce(-_weighed(target, log_probabilities).sum(-1), reduction)


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return KL(teacher ‖ student) of the softened distributions, by default times T² (Hinton et al. 2015, 1503.02531).

    T² · Σ_k p_k (log p_k − log q_k), with p = softmax(teacher / T), q = softmax(student / T). The factor keeps the size
    of the gradient when T changes. "mean" is over samples, and a class whose teacher logit is −inf weighs nothing.

    Raises:
        RecipeError: a temperature that is not positive, or an unknown reduction.
    """
    if not temperature > 0:
        raise RecipeError(f"temperature must be positive; got {temperature}")
    student = functional.log_softmax(_widened(student_logits) / temperature, dim=-1)
    teacher = functional.log_softmax(_widened(teacher_logits) / temperature, dim=-1)
    probabilities = teacher.exp()
    values = (_weighed(probabilities, teacher) - _weighed(probabilities, student)).sum(-1)
    return reduce(values * temperature**2 if scale_by_temperature_squared else values, reduction)


def _widened(values: Tensor) -> Tensor:
    """Return half-precision values as float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _weighed(probabilities: Tensor, log_values: Tensor) -> Tensor:
    """Return p · v with 0 · (−inf) = 0; masked before the product, so that gradients stay finite as well."""
    return probabilities * log_values.masked_fill(probabilities == 0, 0.0)

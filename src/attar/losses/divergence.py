"""Distances between class distributions given as logits: cross-entropies and divergences.

Logits are `[n, classes]`, or `[…, classes]` with any number of leading dimensions. Half-precision logits are taken to
float32 first, so that neither a small temperature nor the exponentials overflow; results are float32 (or float64).
Gradients flow to every argument: detach the teacher where it is fixed. A class whose logit is −inf on both sides is
no class: it weighs nothing. "mean" is over samples (all leading dimensions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses.numerics import paired, positive, weighed, widened
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
    log_probabilities = functional.log_softmax(widened(logits), dim=-1)
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
    target = widened(target_probabilities)
    log_probabilities = functional.log_softmax(widened(logits), dim=-1)
    return reduce(-weighed(target, log_probabilities).sum(-1), reduction)


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
        RecipeError: shapes that differ, a temperature that is not positive, or an unknown reduction.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    values = _kl(teacher, student)
    return reduce(values * temperature**2 if scale_by_temperature_squared else values, reduction)


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return KL(student ‖ teacher) of the softened distributions, by default times T²; it seeks a mode of the teacher.

    Its gradient holds the student's entropy, which `kl_div` with swapped arguments and a detached target loses
    (Gu et al. 2023, arXiv 2306.08543). A class the teacher excludes by −inf and the student does not costs infinity.

    Raises:
        RecipeError: shapes that differ, a temperature that is not positive, or an unknown reduction.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    return reduce(scale * _kl(student, teacher), reduction)


def symmetric_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    scale_by_temperature_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return ½ [KL(teacher ‖ student) + KL(student ‖ teacher)], half of Jeffreys' divergence, by default times T².

    This is what SSLD calls a Jensen–Shannon divergence (Cui et al. 2021, arXiv 2103.05959); for the true one see
    `jensen_shannon`.

    Raises:
        RecipeError: shapes that differ, a temperature that is not positive, or an unknown reduction.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    return reduce(scale * 0.5 * (_kl(teacher, student) + _kl(student, teacher)), reduction)


def balanced_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    emphasis: float = 2.0,
    swapped: bool = False,
    scale_by_temperature_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return a KL(p ‖ q) + b KL(q ‖ p) for teacher p and student q, by default times T², one of a and b emphasised.

    Where the student is the surer one, H(p) > H(q), (a, b) = (δ, 1), and (1, δ) elsewhere, with δ the `emphasis`: too
    sure a student has to cover the teacher's mass, too unsure a one to find its mode. `swapped` exchanges the cases.
    No gradient flows through the entropies; both are of the softened distributions (BD-KD, arXiv 2212.12965).

    Raises:
        RecipeError: shapes that differ, a temperature or emphasis that is not positive, or an unknown reduction.
    """
    positive(emphasis, "emphasis")
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    surer = (_entropy(teacher) > _entropy(student)) != swapped
    forward, backward = _kl(teacher, student), _kl(student, teacher)
    values = torch.where(surer, emphasis * forward + backward, forward + emphasis * backward)
    return reduce(values * temperature**2 if scale_by_temperature_squared else values, reduction)


def jensen_shannon(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    beta: float = 0.5,
    scale_by_temperature_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q, teacher p and student q, by default times T².

    At most log 2 for β = ½ and T = 1, and finite even where one side excludes a class. `beta` is inside (0, 1): the
    formula tends to 0 at both ends, and JSD / β to KL(p ‖ q), JSD / (1 − β) to KL(q ‖ p)
    (Agarwal et al. 2023, arXiv 2306.13649).

    Raises:
        RecipeError: `beta` not inside (0, 1), shapes that differ, a temperature that is not positive, or an unknown
            reduction.
    """
    if not 0.0 < beta < 1.0:
        raise RecipeError(f"beta lies between 0 and 1, where the ends are kl_divergence and reverse_kl; got {beta}")
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    mixture = _log_mixture(teacher, student, beta)
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    return reduce(scale * (beta * _kl(teacher, mixture) + (1.0 - beta) * _kl(student, mixture)), reduction)


def skewed_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    skew: float = 0.1,
    scale_by_temperature_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return KL(p ‖ α p + (1 − α) q) for teacher p, student q and the skew α in (0, 1), by default times T².

    Never above −log α at T = 1. With student and teacher exchanged it is the skewed reverse divergence
    (Ko et al. 2024, arXiv 2402.03898).

    Raises:
        RecipeError: a skew not inside (0, 1), shapes that differ, a temperature that is not positive, or an unknown
            reduction.
    """
    if not 0.0 < skew < 1.0:
        raise RecipeError(f"the skew lies between 0 (kl_divergence) and 1 (nothing to learn); got {skew}")
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    return reduce(scale * _kl(teacher, _log_mixture(teacher, student, skew)), reduction)


def alpha_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    alpha: float,
    scale_by_temperature_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return (Σ_k p_k^α q_k^(1−α) − 1) / (α (α − 1)) for teacher p and student q, by default times T².

    KL(p ‖ q) for α = 1 and KL(q ‖ p) for α = 0 (the limits), 4 (1 − Σ √(p q)) for α = ½, half of Pearson's χ² for
    α = 2. Outside [0, 1] it grows like a power of p / q and may overflow: clip the gradients there
    (Wang et al. 2021, arXiv 2102.07954).

    Raises:
        RecipeError: an `alpha` that is not finite, shapes that differ, a temperature that is not positive, or an
            unknown reduction.
    """
    if not math.isfinite(alpha):
        raise RecipeError(f"alpha is a finite number; got {alpha}")
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    if alpha in (0.0, 1.0):
        values = _kl(teacher, student) if alpha == 1.0 else _kl(student, teacher)
    else:
        nowhere = (teacher == -math.inf) & (student == -math.inf)
        exponents = alpha * teacher.masked_fill(nowhere, 0.0) + (1.0 - alpha) * student.masked_fill(nowhere, 0.0)
        total = torch.logsumexp(exponents.masked_fill(nowhere, -math.inf), -1)
        values = torch.expm1(total) / (alpha * (alpha - 1.0))
    return reduce(values * temperature**2 if scale_by_temperature_squared else values, reduction)


def total_variation(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """Return ½ Σ_k |p_k − q_k| in [0, 1] of the softened distributions; no factor T².

    The mass that has to move to turn one into the other (Wen et al. 2023, arXiv 2307.15190).

    Raises:
        RecipeError: shapes that differ, a temperature that is not positive, or an unknown reduction.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return reduce(0.5 * (teacher.exp() - student.exp()).abs().sum(-1), reduction)


def _log_probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log softmax(z / T) of both."""
    positive(temperature, "temperature")
    student, teacher = paired(student_logits, teacher_logits, "logits")
    return functional.log_softmax(student / temperature, -1), functional.log_softmax(teacher / temperature, -1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return Σ_k p_k (log p_k − log q_k) of log-probabilities `[…, classes]`."""
    p = log_p.exp()
    return (weighed(p, log_p) - weighed(p, log_q)).sum(-1)


def _entropy(log_p: Tensor) -> Tensor:
    """Return −Σ_k p_k log p_k of log-probabilities `[…, classes]`, as a constant."""
    fixed = log_p.detach()
    return -weighed(fixed.exp(), fixed).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Return log(share · p + (1 − share) · q); where both are −inf some finite number, which nothing weighs."""
    nowhere = (log_p == -math.inf) & (log_q == -math.inf)
    p, q = log_p.masked_fill(nowhere, 0.0) + math.log(share), log_q.masked_fill(nowhere, 0.0) + math.log1p(-share)
    return torch.logaddexp(p, q)

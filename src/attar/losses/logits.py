"""What a student's logits take from a teacher's or from labels, beyond one divergence: DKD, NKD, DIST, OFA, Tf-KD.

Logits are `[n, classes]`, or `[…, classes]` with any number of leading dimensions, `labels` `[…]` integers in
[0, classes). Half precision is taken to float32 first. Gradients flow to every tensor: detach the teacher where it is
fixed. Classes whose logits are −inf on both sides weigh nothing. "mean" is over samples.

What needs no formula of its own: label smoothing is `cross_entropy`; born-again networks and Tf-KD's self form are
`kl_divergence` from an earlier copy; CS-KD is `kl_divergence` at T = 4 from the detached logits of another image of
the class (arXiv 2003.13964); PS-KD is `soft_cross_entropy` with labels mixed with the last epoch's probabilities
(arXiv 2006.12000).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError, did_you_mean
from attar.losses.numerics import centred, lengths, paired, positive, weighed, widened
from attar.losses.reduction import Reduction, reduce

AdaptiveTarget = Literal["code", "paper"]
Softening = Literal["power", "softmax"]


def standardised_logits(logits: Tensor) -> Tensor:
    """Return (z − mean_k z) / (std_k z + 1e-7), the logits of a sample as z-scores over its classes.

    The standard deviation is the unbiased one. The result does not change with z → a z + b, a > 0; equal logits become
    zeros with the gradient 0, and classes of −inf stay so and count nothing. To be given to a loss with a temperature
    for both networks; cross-entropy with labels keeps the raw logits (Sun et al. 2024, arXiv 2403.01427).
    """
    logits = widened(logits)
    absent = logits == -math.inf
    count = (~absent).sum(-1, keepdim=True)
    present = logits.masked_fill(absent, 0.0)
    centred = (present - present.sum(-1, keepdim=True) / count.clamp_min(1)).masked_fill(absent, 0.0)
    # A mean is off by rounding: what is left of equal logits is no deviation.
    centred = centred.masked_fill(_constant(logits, absent), 0.0)
    deviation = lengths(centred) / (count - 1).clamp_min(1).to(centred.dtype).sqrt()
    return (centred / (deviation + 1e-7)).masked_fill(absent, -math.inf)


def decoupled_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    *,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 8.0,
    scale_by_temperature_squared: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return α · TCKD + β · NCKD, by default times T²: target and non-target knowledge weighted apart.

    With p and q softened by T (teacher, student), y the label and p̂ the distribution p renormalised to all k ≠ y:
    TCKD = KL((p_y, 1 − p_y) ‖ (q_y, 1 − q_y)) and NCKD = KL(p̂ ‖ q̂). For α = 1 and β = 1 − p_y the sum is
    KL(p ‖ q); so `alpha` and `beta` are numbers or tensors `[…]` with one weight a sample. Where the teacher leaves no
    class but the label, NCKD is 0 (Zhao et al. 2022, arXiv 2203.08679; here in log space throughout).

    Raises:
        RecipeError: shapes that differ, a temperature that is not positive, or an unknown reduction.
    """
    positive(temperature, "temperature")
    student, teacher = paired(student_logits, teacher_logits, "logits")
    q, p = _split(student / temperature, labels), _split(teacher / temperature, labels)
    target = _divergence(p.target, q.target) + _divergence(p.rest, q.rest)
    values = alpha * target + beta * _divergence(p.others, q.others).sum(-1)
    return reduce(values * temperature**2 if scale_by_temperature_squared else values, reduction)


def normalised_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    gamma: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return −p_y log q_y − γ T² Σ_{k≠y} p̂_k log q̂_k: the label's share softly, the others normalised among themselves.

    p and q are at temperature 1 in the first term; p̂ and q̂ are softmax(z / T) over the classes other than the label.
    The paper adds cross-entropy with the labels and sets γ to 1.5 (1 with DeiT students)
    (Yang et al. 2023, arXiv 2303.13005).

    Raises:
        RecipeError: shapes that differ, a temperature that is not positive, or an unknown reduction.
    """
    positive(temperature, "temperature")
    student, teacher = paired(student_logits, teacher_logits, "logits")
    q, p = _split(student / temperature, labels), _split(teacher / temperature, labels)
    sharp_q, sharp_p = (_split(logits, labels).target for logits in (student, teacher))
    others = weighed(p.others.exp(), q.others).sum(-1)
    return reduce(-weighed(sharp_p.exp(), sharp_q) - gamma * temperature**2 * others, reduction)


def adaptive_target_cross_entropy(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    gamma: float = 1.0,
    form: AdaptiveTarget = "code",
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the cross-entropy with a teacher whose share of the label is enhanced by the power γ ≥ 1.

    With p and q softened by T (teacher, student; no factor T²) and m the one-hot label:

    - "code": −Σ_k [(p_k + m_k)^γ − m_k] log q_k, the cross-entropy with p for γ = 1.
    - "paper": −(1 + p_y)^γ log q_y − Σ_{k≠y} p_k log q_k, which holds the cross-entropy with the label as well.

    For γ > 1 the targets of "code" no longer sum to 1 (Hao et al. 2023, arXiv 2310.19444).

    Raises:
        RecipeError: γ below 1, an unknown form, shapes that differ, a temperature that is not positive, or an unknown
            reduction.
    """
    if not gamma >= 1.0:
        raise RecipeError(f"gamma enhances the target and is at least 1 (no enhancement); got {gamma}")
    positive(temperature, "temperature")
    student, teacher = paired(logits, teacher_logits, "logits")
    probabilities, target = functional.softmax(teacher / temperature, -1), _is_target(teacher, labels)
    if form == "code":
        weights = (probabilities + target.to(probabilities.dtype)).pow(gamma) - target.to(probabilities.dtype)
    elif form == "paper":
        weights = torch.where(target, (1.0 + probabilities).pow(gamma), probabilities)
    else:
        raise RecipeError(f"unknown form {form!r}{did_you_mean(str(form), ['code', 'paper'])} It is 'code' or 'paper'")
    return reduce(-weighed(weights, functional.log_softmax(student / temperature, -1)).sum(-1), reduction)


def virtual_teacher_kl(
    student_logits: Tensor,
    labels: Tensor,
    temperature: float = 20.0,
    *,
    correct: float = 0.99,
    student_temperature: float | None = None,
    softening: Softening = "power",
    scale_by_temperature_squared: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return KL(u ‖ q) for a teacher made by hand: `correct` for the label, the rest spread evenly, softened by T.

    q is softmax(z / T), or another `student_temperature`; the official code has 1 there. `softening` is how T acts on
    the hand-made p: "power" takes it as a network's output, u ∝ p^(1/T); "softmax" is the official code's
    u = softmax(p / T), nearly uniform. Tf-KD adds it to the cross-entropy with the labels, weights α and 1 − α
    (Yuan et al. 2020, arXiv 1909.11723, without T²). Its other form, from an earlier copy of the network,
    is `kl_divergence`.

    Raises:
        RecipeError: `correct` outside (0, 1], an unknown softening or reduction, or a temperature that is not positive.
    """
    if not 0.0 < correct <= 1.0:
        raise RecipeError(f"correct is the label's probability, above 0 and at most 1; got {correct}")
    if softening not in ("power", "softmax"):
        hint = did_you_mean(str(softening), ["power", "softmax"])
        raise RecipeError(f"unknown softening {softening!r}{hint} It is 'power' or 'softmax'")
    student = widened(student_logits) / positive(student_temperature or temperature, "student_temperature")
    spread = (1.0 - correct) / max(student.shape[-1] - 1, 1)
    made = torch.full_like(student, spread).masked_fill(_is_target(student, labels), correct)
    teacher = made.log() if softening == "power" else made
    teacher = functional.log_softmax(teacher / positive(temperature, "temperature"), -1)
    values = _divergence(teacher, functional.log_softmax(student, -1)).sum(-1)
    return reduce(values * temperature**2 if scale_by_temperature_squared else values, reduction)


def pearson_distance(student: Tensor, teacher: Tensor, *, dim: int = -1, reduction: Reduction = "mean") -> Tensor:
    """Return 1 − ρ, the Pearson correlation ρ in [−1, 1] of any values along `dim`, for each of the other dimensions.

    ρ = ⟨a, b⟩ / (‖a‖ ‖b‖ + 1e-8) of the centred values a and b, so it does not change with y → a y + b, a > 0. Values
    that are all equal have ρ = 0 and the gradient 0.

    Raises:
        RecipeError: shapes that differ, or an unknown reduction.
    """
    student, teacher = paired(student, teacher, "values")
    a, b = centred(student, dim), centred(teacher, dim)
    inner = (a * b).sum(dim, keepdim=True)
    return reduce((1.0 - inner / (lengths(a, dim) * lengths(b, dim) + 1e-8)).squeeze(dim), reduction)


def correlation_distance(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
    scale_by_temperature_squared: bool = False,
) -> Tensor:
    """Return β · mean_i (1 − ρ of row i) + γ · mean_k (1 − ρ of column k) of softmax(z / T): DIST, one number.

    Rows are samples, their correlations over classes are the inter-class relation (`inter` is β); columns are classes,
    their correlations over the batch the intra-class relation (`intra` is γ). Both means are part of the formula, so
    there is no reduction; with a batch of one, the second is constant. Official code of late multiplies by T², the
    paper does not (Huang et al. 2022, arXiv 2205.10536).

    Raises:
        RecipeError: shapes that differ, or a temperature that is not positive.
    """
    positive(temperature, "temperature")
    student, teacher = paired(student_logits, teacher_logits, "logits")
    rows = [functional.softmax(z / temperature, -1).flatten(0, -2) for z in (student, teacher)]
    value = inter * pearson_distance(*rows, dim=1) + intra * pearson_distance(*rows, dim=0)
    return value * temperature**2 if scale_by_temperature_squared else value


class _Split(NamedTuple):
    """A distribution seen from the label y: log p_y and log(1 − p_y) `[…]`, and log p̂ `[…, classes]`, −inf at y."""

    target: Tensor
    rest: Tensor
    others: Tensor


def _split(logits: Tensor, labels: Tensor) -> _Split:
    """Split softmax(logits) at the labels, in log space; all of p̂ is −inf where only the label is possible."""
    log_p = functional.log_softmax(logits, -1)
    masked = log_p.masked_fill(_is_target(logits, labels), -math.inf)
    alone = (masked == -math.inf).all(-1, keepdim=True)
    masked = masked.masked_fill(alone, 0.0)  # any finite number: what is made of it is covered below
    rest = torch.logsumexp(masked, -1, keepdim=True)
    target = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    others = (masked - rest).masked_fill(alone, -math.inf)
    return _Split(target, rest.masked_fill(alone, -math.inf).squeeze(-1), others)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return p (log p − log q), entry by entry."""
    p = log_p.exp()
    return weighed(p, log_p) - weighed(p, log_q)


def _is_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether a class is the label, `[…, classes]`."""
    if labels.shape != logits.shape[:-1]:
        raise RecipeError(
            f"logits {list(logits.shape)} need labels {list(logits.shape[:-1])}, one integer a sample; "
            f"got {list(labels.shape)}"
        )
    return torch.arange(logits.shape[-1], device=logits.device) == labels.unsqueeze(-1)


def _constant(logits: Tensor, absent: Tensor) -> Tensor:
    """Return whether the logits of a sample are all equal, `[…, 1]`, leaving out the absent ones."""
    high = logits.masked_fill(absent, -math.inf).amax(-1, keepdim=True)
    return high == logits.masked_fill(absent, math.inf).amin(-1, keepdim=True)

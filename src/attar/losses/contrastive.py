"""Telling a sample's partner from all others: InfoNCE, NT-Xent, supervised contrast, CRD's estimate, and affinities.

Embeddings are `[n, D]` and are taken to length 1 here, so scores are cosines divided by a temperature. Half precision
is taken to float32 first, and products are not halved by autocast. Gradients flow to every argument: detach a fixed
teacher and the rows of a memory. "mean" is over anchors, "none" gives one number an anchor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses.numerics import directions, paired, positive, product, weighed, widened
from attar.losses.reduction import Reduction, reduce


def info_nce(
    anchors: Tensor,
    partners: Tensor,
    temperature: float = 0.07,
    *,
    negatives: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return −log softmax_j(cos(a_i, c_j) / τ) at j = i, the candidates c being all partners and then the negatives.

    `anchors`, `partners` `[n, D]`, row i of one belonging to row i of the other; `negatives` `[m, D]`, rows of a memory
    say, serve all anchors. log(n + m) less its mean bounds the mutual information from below; one direction only, the
    symmetric form is the mean of both (van den Oord et al. 2018, arXiv 1807.03748, equation 4).

    Raises:
        RecipeError: shapes that differ, a temperature that is not positive, or an unknown reduction.
    """
    positive(temperature, "temperature")
    anchors, partners = paired(anchors, partners, "embeddings", dims=(2,))
    candidates = directions(partners)
    if negatives is not None:
        candidates = torch.cat([candidates, directions(widened(negatives))])
    scores = product(directions(anchors), candidates.T) / temperature
    return reduce(-functional.log_softmax(scores, -1).diagonal(), reduction)


def supervised_contrastive(
    embeddings: Tensor, labels: Tensor, temperature: float = 0.07, *, reduction: Reduction = "mean"
) -> Tensor:
    """Return −mean_{j: same label} log (exp(f_i · f_j / τ) / Σ_{k≠i} exp(f_i · f_k / τ)), for every i with a partner.

    `embeddings` `[n, D]`, `labels` `[n]` integers. "mean" is over the anchors with a partner; without any the loss is
    0, and "none" has 0 for an anchor without one (Khosla et al. 2020, arXiv 2004.11362, L_out of equation 2).

    Raises:
        RecipeError: labels that do not fit, a temperature that is not positive, or an unknown reduction.
    """
    if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1]:
        raise RecipeError(f"embeddings [n, D] need labels [n]; got {list(embeddings.shape)} and {list(labels.shape)}")
    unit = directions(widened(embeddings))
    scores = product(unit, unit.T) / positive(temperature, "temperature")
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    alike = (labels[:, None] == labels[None]) & ~itself
    partners = alike.sum(1)
    # An anchor's own score leaves the sum as −inf; a batch of one has nothing left, and no partner either.
    total = torch.logsumexp(scores.masked_fill(itself, -math.inf if len(unit) > 1 else 0.0), 1, keepdim=True)
    values = (total - scores).masked_fill(~alike, 0.0).sum(1) / partners.clamp_min(1)
    if reduction == "mean":
        return values.sum() / (partners > 0).sum().clamp_min(1)
    return reduce(values, reduction)


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5, *, reduction: Reduction = "mean") -> Tensor:
    """Return the contrast of two views of n samples: each of the 2n embeddings must find its other view among 2n − 1.

    `first`, `second` `[n, D]`; "none" gives `[2n]`, the first views before the second. It is `supervised_contrastive`
    where every sample is a class of its own (Chen et al. 2020, arXiv 2002.05709, equation 1).

    Raises:
        RecipeError: shapes that differ, a temperature that is not positive, or an unknown reduction.
    """
    first, second = paired(first, second, "embeddings", dims=(2,))
    labels = torch.arange(len(first), device=first.device).repeat(2)
    return supervised_contrastive(torch.cat([first, second]), labels, temperature, reduction=reduction)


def bank_scores(anchors: Tensor, bank: Tensor, indices: Tensor, temperature: float = 0.07) -> Tensor:
    """Return ⟨a_i, bank[indices_ij]⟩ / τ `[n, m]`: the scores of anchors `[n, D]` with rows of a memory `[N, D]`.

    `indices` `[n, m]` in [0, N). Anchors and rows are taken as they are; CRD's have length 1. Where N is at most 32 m,
    all rows are multiplied at once and the scores picked, which holds n · N numbers and not n · m · D.

    Raises:
        RecipeError: indices for another number of anchors, or a temperature that is not positive.
    """
    positive(temperature, "temperature")
    anchors, bank = widened(anchors), widened(bank)
    if indices.dim() != 2 or len(indices) != len(anchors):
        raise RecipeError(f"{len(anchors)} anchors need indices of as many rows, [n, m]; got {list(indices.shape)}")
    if len(bank) <= 32 * indices.shape[1]:
        return product(anchors, bank.T).gather(1, indices) / temperature
    return product(bank[indices], anchors.unsqueeze(-1)).squeeze(-1) / temperature


def log_partition(scores: Tensor, rows: int) -> Tensor:
    """Return log Z = log(N · mean exp(score)) for a memory of N `rows`; CRD fixes it at the first batch, per direction.

    `scores` of any shape, partners' and negatives' together, as `bank_scores` gives them.
    """
    return torch.logsumexp(widened(scores).detach().flatten(), 0) - math.log(scores.numel()) + math.log(rows)


def noise_contrastive(
    partner_scores: Tensor,
    negative_scores: Tensor,
    log_z: Tensor | float,
    *,
    rows: int,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return −log [s₊ / (s₊ + M P)] − Σ_negatives log [M P / (s₋ + M P)], s = exp(score) / Z: CRD, one direction.

    `partner_scores` `[n]` and `negative_scores` `[n, M]` come from `bank_scores`, `log_z` from `log_partition`; noise
    is uniform over the memory, P = 1 / `rows`. Computed as log-sigmoids of score − log Z − log(M P), finite for every
    score. CRD adds the direction from the teacher's embeddings to the student's memory
    (Tian et al. 2020, arXiv 1910.10699; Z and P as in the official code).

    Raises:
        RecipeError: scores of different numbers of anchors, no negatives, or an unknown reduction.
    """
    if negative_scores.dim() != 2 or partner_scores.shape != negative_scores.shape[:1] or not negative_scores.shape[1]:
        shapes = f"{list(partner_scores.shape)} and {list(negative_scores.shape)}"
        raise RecipeError(
            f"each anchor has one partner's score [n] and M negatives' [n, M], M at least 1; got {shapes}"
        )
    offset = log_z + math.log(negative_scores.shape[1] / rows)
    found = functional.logsigmoid(widened(partner_scores) - offset)
    refused = functional.logsigmoid(offset - widened(negative_scores)).sum(1)
    return reduce(-found - refused, reduction)


def affinity_cross_entropy(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    *,
    student_scale: float | Tensor = 50.0,
    teacher_scale: float | Tensor = 50.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return ½ [CE(softmax(s' I' U'ᵀ), s I Uᵀ) + CE(softmax(s' U' I'ᵀ), s U Iᵀ)]: whom each image and text resemble.

    `student` (I, U) and `teacher` (I', U') are vectors of length 1 of n images and their n texts, `[n, D]` each, taken
    as they are; D may differ between the two. Least, the teacher's entropy, where the affinities agree
    (Wu et al. 2023, arXiv 2309.12314).

    Raises:
        RecipeError: numbers of images and texts that differ, or an unknown reduction.
    """
    (images, texts), (taught_images, taught_texts) = student, teacher
    if not len(images) == len(texts) == len(taught_images) == len(taught_texts):
        sizes = ", ".join(str(len(side)) for side in (images, texts, taught_images, taught_texts))
        raise RecipeError(f"affinities are between n images and their n texts, for student and teacher; got {sizes}")
    logits = student_scale * product(widened(images), widened(texts).T)
    wanted = teacher_scale * product(widened(taught_images), widened(taught_texts).T)
    by_image, by_text = (
        -weighed(functional.softmax(target, -1), functional.log_softmax(z, -1)).sum(-1)
        for z, target in ((logits, wanted), (logits.T, wanted.T))
    )
    return reduce(0.5 * (by_image + by_text), reduction)

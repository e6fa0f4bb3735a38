"""How samples, or channels, of one batch relate to each other, in student and teacher: SP, RKD, CC, PKT, ICKD, CKA.

Features are `[n, …]`, flattened behind the batch; only n has to agree, unless a formula compares entries. Half
precision is taken to float32 first, and products are not halved by autocast. A sample's value depends on the whole
batch, so with several processes gather the features first. "none" gives one number a sample `[n]`, the mean over its
partners; "mean" is over samples. Gradients flow to every argument: detach the teacher where it is fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses.numerics import batched, centred, directions, paired, product, widened
from attar.losses.reduction import Reduction, reduce


def similarity_distance(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return ‖G_s − G_t‖²_F / n² ("mean"), where G = X Xᵀ with rows of length 1: which samples excite a layer alike.

    `student` and `teacher` are `[n, …]` features of one layer each, of any sizes. The value of a sample is the mean of
    its row, so "mean" has the n² to which the weight 3000 belongs (Tung & Mori 2019, arXiv 1907.09682).

    Raises:
        RecipeError: batches that differ in size, or an unknown reduction.
    """
    student, teacher = batched(student, teacher, "features")
    gap = directions(product(student, student.T)) - directions(product(teacher, teacher.T))
    return reduce(gap.square().mean(1), reduction)


def relational_distance(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the smooth L1 between pairwise distances, each network's divided by their mean: RKD's distance term.

    `student`, `teacher` `[n, D]` embeddings, of any widths. D_ij = ‖f_i − f_j‖, divided by the mean of the positive
    ones; "mean" is over all n² pairs. It does not change when a network's embeddings are moved, turned, mirrored or
    scaled as a whole (Park et al. 2019, arXiv 1904.05068).

    Raises:
        RecipeError: batches that differ in size, or an unknown reduction.
    """
    student, teacher = batched(student, teacher, "embeddings")
    return reduce(_smooth_l1(_relative_distances(student), _relative_distances(teacher)).mean(1), reduction)


def relational_angle(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the smooth L1 between the cosines at j of all triples (i, j, k): RKD's angle term.

    `student`, `teacher` `[n, D]` embeddings, of any widths. cos ∠ijk = ⟨e_ij, e_kj⟩ with unit differences
    e_ij = (f_i − f_j) / ‖f_i − f_j‖, zero for equal embeddings; "mean" is over all n³ triples, as in use. Memory grows
    with n² D + n³. Invariant as `relational_distance` is (Park et al. 2019, arXiv 1904.05068).

    Raises:
        RecipeError: batches that differ in size, or an unknown reduction.
    """
    student, teacher = batched(student, teacher, "embeddings")
    return reduce(_smooth_l1(_cosines(student), _cosines(teacher)).mean((1, 2)), reduction)


def probability_transfer(
    student: Tensor, teacher: Tensor, *, epsilon: float = 1e-7, reduction: Reduction = "mean"
) -> Tensor:
    """Return the mean over partners j of P_ij log(P_ij / Q_ij), teacher P and student Q: PKT.

    P_ij = (1 + cos(f_i, f_j)) / 2, rows divided by their sum; ε stands beside both in the logarithm. `student`,
    `teacher` `[n, …]`. "mean" is over n², to which the weight 30000 belongs
    (Passalis & Tefas 2018, arXiv 1803.10837).

    Raises:
        RecipeError: batches that differ in size, or an unknown reduction.
    """
    student, teacher = batched(student, teacher, "features")

    def probabilities(features: Tensor) -> Tensor:
        """Return how likely each sample takes each for its neighbour `[n, n]`, rows of sum 1."""
        unit = directions(features)
        kernel = (0.5 * (1.0 + product(unit, unit.T))).clamp_min(0.0)  # opposite vectors: rounding below zero
        return kernel / (kernel.sum(1, keepdim=True) + epsilon)

    p, q = probabilities(teacher), probabilities(student)
    return reduce((p * ((p + epsilon) / (q + epsilon)).log()).mean(1), reduction)


def correlation_congruence(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return Σ_d |δ_i| |δ_(i+1)| for neighbours in the batch, δ = s − t: the form the authors gave to RepDistiller.

    `student`, `teacher` `[n, D]`, both after a linear layer to one width. It depends on the order of the batch; "none"
    gives `[n − 1]`, and a batch of one is 0 (Peng et al. 2019, arXiv 1904.01802).

    Raises:
        RecipeError: shapes that differ or are no matrices, or an unknown reduction.
    """
    student, teacher = paired(student, teacher, "embeddings", dims=(2,))
    gap = (student - teacher).abs()
    values = (gap[:-1] * gap[1:]).sum(1)
    return reduce(values if len(values) or reduction == "none" else gap.sum(1) * 0.0, reduction)


def channel_correlation_distance(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return ‖E_s − E_t‖²_F / C sample by sample, E = F Fᵀ between channels with rows of length 1: ICKD.

    `student`, `teacher` `[n, C, …]` with the same C and any places (Liu et al. 2021, arXiv 2202.03680).

    Raises:
        RecipeError: samples or channels that differ, or an unknown reduction.
    """
    if student.dim() < 3 or teacher.dim() < 3 or student.shape[:2] != teacher.shape[:2]:
        raise RecipeError(
            "channels are compared in maps [n, channels, …] with the same n and channels; "
            f"got {list(student.shape)} and {list(teacher.shape)}. Put a projector on the student"
        )
    s, t = (widened(side).flatten(2) for side in (student, teacher))
    gap = directions(product(s, s.mT)) - directions(product(t, t.mT))
    return reduce(gap.square().sum((1, 2)) / gap.shape[1], reduction)


def linear_cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """Return ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) of features centred over the batch: one number, 1 for equal up to rotation.

    `x`, `y` `[n, …]`, of any sizes; in [0, 1]. It does not change when features are turned, or scaled as a whole, and
    is 0, with the gradient 0, for features that do not vary. With few samples and many features it is near 1 for
    anything: `unbiased` takes HSIC without its diagonal (n ≥ 4, values around 0 for the unrelated, and below), as
    analysis wants. The loss is `1 − linear_cka` (Kornblith et al. 2019, arXiv 1905.00414; Nguyen et al. 2021,
    arXiv 2010.15327).

    Raises:
        RecipeError: batches that differ in size, or fewer than four samples where `unbiased`.
    """
    x, y = (centred(side, 0) for side in batched(x, y, "features"))
    x, y = (side / _largest(side) for side in (x, y))  # fourth powers follow
    if unbiased and len(x) < 4:
        raise RecipeError(f"unbiased CKA needs four samples or more; got {len(x)}")
    hsic = _unbiased_hsic if unbiased else _biased_hsic
    within = hsic(x, x).clamp_min(0.0) * hsic(y, y).clamp_min(0.0)
    constant = within == 0
    return hsic(x, y) / within.masked_fill(constant, 1.0).sqrt()


def _biased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Return ‖YᵀX‖²_F of centred features, by features or by samples, whichever are fewer."""
    if x.shape[1] * y.shape[1] <= len(x) ** 2:
        return product(y.T, x).square().sum()
    return (product(x, x.T) * product(y, y.T)).sum()


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Return tr(AB) + 1ᵀA1 1ᵀB1 / ((n − 1)(n − 2)) − 2 1ᵀAB1 / (n − 2), the Grams A and B without their diagonals."""
    n = len(x)
    diagonal = torch.eye(n, dtype=torch.bool, device=x.device)
    a, b = (product(side, side.T).masked_fill(diagonal, 0.0) for side in (x, y))
    rows_a, rows_b = a.sum(1), b.sum(1)
    both = rows_a.sum() * rows_b.sum() / ((n - 1) * (n - 2))
    return (a * b).sum() + both - 2.0 * (rows_a * rows_b).sum() / (n - 2)


def _largest(values: Tensor) -> Tensor:
    """Return the largest size of an entry, a constant, or 1 where all are zero."""
    largest = values.detach().abs().amax()
    return largest.masked_fill(largest == 0, 1.0)


def _smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ½ d² where |d| < 1, else |d| − ½."""
    return functional.smooth_l1_loss(student, teacher, reduction="none")


def _relative_distances(embeddings: Tensor) -> Tensor:
    """Return pairwise distances `[n, n]` divided by the mean of the positive ones; zeros where there is none."""
    # By products of embeddings it would be faster, and near ones would be at distances of rounding.
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.masked_fill(mean == 0, 1.0)


def _cosines(embeddings: Tensor) -> Tensor:
    """Return the cosines at each vertex j between the differences to all i and k, `[j, i, k]`."""
    unit = directions(embeddings[None] - embeddings[:, None])
    return product(unit, unit.mT)

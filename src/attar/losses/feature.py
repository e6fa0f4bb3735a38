"""What a student's feature maps take from a teacher's, sample by sample: FitNet, AT, OFD, ReviewKD, VID, NST and kin.

Maps are `[n, channels, height, width]`, any shape `[n, …]` where a formula is of single entries; half precision is
taken to float32 first. "mean" is over samples, "none" gives one number a sample `[n]`; what a formula does inside a
sample, mean or sum, is its own and said with it, since the published weights are tied to it. Gradients flow to every
argument: detach the teacher where it is fixed. Where channels differ, a projector trained with the student comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError, did_you_mean
from attar.losses.matching import attention_maps
from attar.losses.numerics import directions, lengths, paired, product, widened
from attar.losses.reduction import Reduction, reduce

AttentionForm = Literal["code", "paper"]
UnitDistance = Literal["squared", "absolute", "cosine"]


def hint_distance(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the mean over the entries of a sample of (s − t)², for tensors of one shape `[n, …]`.

    FitNet's hint on a regressor's output (Romero et al. 2015, arXiv 1412.6550; ½ ‖·‖² in the paper, the mean in the
    libraries whose weights are in use) and SimKD's loss on the projected last map (Chen et al. 2022, arXiv 2203.14001).

    Raises:
        RecipeError: shapes that differ, or an unknown reduction.
    """
    student, teacher = paired(student, teacher, "features")
    return reduce((student - teacher).square().flatten(1).mean(1), reduction)


def unit_distance(
    student: Tensor, teacher: Tensor, *, dim: int = 1, kind: UnitDistance = "squared", reduction: Reduction = "mean"
) -> Tensor:
    """Return the distance of features whose vectors along `dim` have length 1, summed over `dim`, for every place.

    With a and b the unit vectors (zero stays zero): "squared" ‖a − b‖², "absolute" Σ |a − b|, "cosine" 1 − ⟨a, b⟩,
    which is half of "squared". `[n, …]` without `dim` is what is reduced, so "mean" is over samples and places
    (tokens); a sum over places, as in ScaleKD, is "none" summed. Divide "absolute" by the channels for DMAE's mean over
    entries (Fan et al. 2024, arXiv 2411.06786; Bai et al. 2023, arXiv 2208.12256).

    Raises:
        RecipeError: shapes that differ, an unknown kind or reduction.
    """
    student, teacher = paired(student, teacher, "features")
    a, b = directions(student, dim), directions(teacher, dim)
    if kind == "squared":
        values = (a - b).square().sum(dim)
    elif kind == "absolute":
        values = (a - b).abs().sum(dim)
    elif kind == "cosine":
        values = 1.0 - (a * b).sum(dim)
    else:
        hint = did_you_mean(str(kind), ["squared", "absolute", "cosine"])
        raise RecipeError(f"unknown distance of unit vectors {kind!r}{hint} It is 'squared', 'absolute' or 'cosine'")
    return reduce(values, reduction)


def norm_direction_distance(
    student: Tensor, teacher: Tensor, class_directions: Tensor, labels: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """Return 1 − ⟨s, e_y⟩ / max(‖s‖, ‖t‖): long features that point where the teacher's class does.

    `student`, `teacher` `[n, D]`, `class_directions` `[classes, D]` the teacher's class means (taken to length 1 here),
    `labels` `[n]`. While ‖s‖ < ‖t‖ it is linear in s along e_y; beyond, only the direction counts. Between 0 and 2
    (Wang et al. 2023, arXiv 2305.17007).

    Raises:
        RecipeError: shapes that differ, or an unknown reduction.
    """
    student, teacher = paired(student, teacher, "features", dims=(2,))
    wanted = directions(widened(class_directions))[labels]
    longest = torch.maximum(lengths(student), lengths(teacher))
    along = (student / longest.masked_fill(longest == 0, math.inf) * wanted).sum(1)
    return reduce(1.0 - along, reduction)


def attention_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    power: float = 2.0,
    form: AttentionForm = "code",
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the distance of the places where student and teacher are excited, whatever their channels and strength.

    a = Σ_channels |f|^power, flattened and of length 1. "code": the mean over places of (a_s − a_t)², to which the
    weight 1000 belongs; "paper": ‖a_s − a_t‖₂, with the gradient 0 where the two agree. The larger map is first
    average-pooled to the size of the smaller (Zagoruyko & Komodakis 2017, arXiv 1612.03928, equation 2).

    Raises:
        RecipeError: maps that are not `[n, channels, height, width]` of the same samples, a power below 1, an unknown
            form or reduction.
    """
    student, teacher = same_places(student, teacher)
    gap = attention_maps(student, power) - attention_maps(teacher, power)
    if form == "code":
        return reduce(gap.square().mean(1), reduction)
    if form == "paper":
        return reduce(lengths(gap).squeeze(1), reduction)
    raise RecipeError(f"unknown form {form!r}{did_you_mean(str(form), ['code', 'paper'])} It is 'code' or 'paper'")


def factor_distance(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the mean over places of |a_s − a_t|, the attention maps (power 2) of translator and paraphraser.

    Maps as in `attention_distance`: the factors of student (translator) and teacher (paraphraser), both trained outside
    (Kim et al. 2018, arXiv 1802.04977; maps as in RepDistiller, where the paper normalises the factors themselves).

    Raises:
        RecipeError: maps that are not `[n, channels, height, width]` of the same samples, or an unknown reduction.
    """
    student, teacher = same_places(student, teacher)
    return reduce((attention_maps(student, 2.0) - attention_maps(teacher, 2.0)).abs().mean(1), reduction)


def negative_margins(means: Tensor, deviations: Tensor) -> Tensor:
    """Return m = E[x | x < 0] ≤ 0 for x ~ N(mean, deviation²), channel by channel: OFD's margins.

    `means` and `deviations` `[channels]` are bias and |weight| of the batch norm whose output the teacher's map is
    (its sign is dropped). Where x < 0 has a probability below 0.001, m is −3 · deviation
    (Heo et al. 2019, arXiv 1904.01866 and official code).
    """
    means, deviations = widened(means), widened(deviations).abs()
    ratio = means / deviations.clamp_min(torch.finfo(means.dtype).tiny)
    below = torch.special.ndtr(-ratio)
    density = (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
    expected = means - deviations * density / below.clamp_min(0.001)
    return torch.where(below > 0.001, expected, -3.0 * deviations)


def partial_distance(student: Tensor, teacher: Tensor, margins: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the sum over channels and places of OFD's partial squares, from maps taken before the ReLU.

    With the target r = max(t, m): (s − r)² where t > 0 or s > r, else 0: where the teacher is silent the student only
    has to stay at or below r. `student`, `teacher` `[n, channels, height, width]`, `margins` m `[channels]` as
    `negative_margins` gives them (Heo et al. 2019, arXiv 1904.01866).

    Raises:
        RecipeError: shapes that differ, margins of another number of channels, or an unknown reduction.
    """
    student, teacher = paired(student, teacher, "maps", dims=(4,))
    if margins.shape != student.shape[1:2]:
        raise RecipeError(f"{student.shape[1]} channels need as many margins; got the shape {list(margins.shape)}")
    target = torch.maximum(teacher, widened(margins)[:, None, None].to(teacher.dtype))
    gap = (student - target).masked_fill((teacher <= 0) & (student <= target), 0.0)
    return reduce(gap.square().flatten(1).sum(1), reduction)


def boundary_distance(
    student: Tensor, teacher: Tensor, *, margin: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Return the sum over entries of (s + m)² where t ≤ 0 and s > −m, and of (s − m)² where t > 0 and s ≤ m.

    Which neurons fire, not how strongly: maps `[n, …]` are taken before the ReLU, and the loss is 0 where the student
    is beyond the margin m on the teacher's side; the teacher has no gradient (Heo et al. 2019, arXiv 1811.03233).

    Raises:
        RecipeError: shapes that differ, or an unknown reduction.
    """
    student, teacher = paired(student, teacher, "maps")
    short = torch.where(teacher > 0, margin - student, margin + student).clamp_min(0.0)
    return reduce(short.square().flatten(1).sum(1), reduction)


def hierarchical_context_distance(
    student: Tensor, teacher: Tensor, *, levels: Sequence[int] = (4, 2, 1), reduction: Reduction = "mean"
) -> Tensor:
    """Return the mean square distance of maps and of their poolings to l × l: weights 1, ½, ¼ …, divided by their sum.

    `student`, `teacher` `[n, channels, height, width]`, or pooled vectors `[n, channels]`, which have one level. Levels
    that are no coarser than the map are skipped and take no weight: ½ goes to the first level in use
    (Chen et al. 2021, arXiv 2104.09044; weights from the official code).

    Raises:
        RecipeError: shapes that differ or are no maps, or an unknown reduction.
    """
    student, teacher = paired(student, teacher, "maps", dims=(2, 4))
    gap = student - teacher  # pooling is linear: the poolings' gap is the gap's pooling
    values, weight, total = gap.square().flatten(1).mean(1), 1.0, 1.0
    for level in levels if gap.dim() == 4 else ():
        if level < gap.shape[2]:
            weight /= 2
            total += weight
            pooled = functional.adaptive_avg_pool2d(gap, level)
            values = values + weight * pooled.square().flatten(1).mean(1)
    return reduce(values / total, reduction)


def variational_distance(
    mean: Tensor, teacher: Tensor, raw_variances: Tensor, *, epsilon: float = 1e-5, reduction: Reduction = "mean"
) -> Tensor:
    """Return the mean over entries of ½ [(μ − t)² / v + log v], v = softplus(a) + ε: −log N(t; μ, v) less a constant.

    `mean` μ is a regressor's guess of the teacher's map from the student's, both `[n, channels, …]`; `raw_variances` a
    `[channels]` is trained with it. Variance 5 to start with, as in use, is a = log(exp(5 − ε) − 1). It maximises a
    lower bound of the mutual information (Ahn et al. 2019, arXiv 1904.05835).

    Raises:
        RecipeError: shapes that differ, variances of another number of channels, or an unknown reduction.
    """
    mean, teacher = paired(mean, teacher, "maps")
    if raw_variances.shape != mean.shape[1:2]:
        raise RecipeError(f"{mean.shape[1]} channels need as many variances; got the shape {list(raw_variances.shape)}")
    variance = (functional.softplus(widened(raw_variances)) + epsilon).view(-1, *[1] * (mean.dim() - 2))
    values = 0.5 * ((mean - teacher).square() / variance + variance.log())
    return reduce(values.flatten(1).mean(1), reduction)


def selectivity_distance(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return MMD² with the kernel ⟨a, b⟩² between the channels of two maps, each of length 1: what neurons select.

    mean k(t, t) + mean k(s, s) − 2 mean k(s, t) over pairs of channels, so the numbers of channels may differ. Equal to
    ‖AᵀA / C_s − BᵀB / C_t‖² for channels in rows, so never negative. The larger map is average-pooled to the smaller's
    size (Huang & Wang 2017, arXiv 1707.01219, the polynomial kernel with d = 2 and c = 0).

    Raises:
        RecipeError: maps that are not `[n, channels, height, width]` of the same samples, or an unknown reduction.
    """
    student, teacher = (directions(side.flatten(2)) for side in same_places(student, teacher))

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        """Return the mean of ⟨a_i, b_j⟩² over pairs of channels `[n]`."""
        return product(a, b.mT).square().flatten(1).mean(1)

    within = mean_kernel(teacher, teacher) + mean_kernel(student, student)
    return reduce(within - 2.0 * mean_kernel(student, teacher), reduction)


def flow_distance(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, reduction: Reduction = "mean"
) -> Tensor:
    """Return the mean square distance of the matrices ⟨x_i, y_j⟩ / places between the channels of two layers.

    `student` and `teacher` are (x, y), maps `[n, C_x, height, width]` and `[n, C_y, …]` of two layers of one network,
    the larger average-pooled to the smaller; C_x and C_y are the same for both networks
    (Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR).

    Raises:
        RecipeError: matrices of different shapes, or an unknown reduction.
    """

    def flow(first: Tensor, second: Tensor) -> Tensor:
        """Return ⟨x_i, y_j⟩ / places between the channels of two maps `[n, C_x, C_y]`."""
        x, y = (side.flatten(2) for side in same_places(first, second))
        return product(x, y.mT) / x.shape[2]

    return hint_distance(flow(*student), flow(*teacher), reduction=reduction)


def same_places(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps widened, the larger average-pooled to the height and width of the smaller.

    Raises:
        RecipeError: maps that are not `[n, channels, height, width]` of the same samples.
    """
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
        raise RecipeError(
            "maps are [n, channels, height, width] of the same n samples; "
            f"got {list(student.shape)} and {list(teacher.shape)}"
        )
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))

    def pooled(maps: Tensor) -> Tensor:
        """Return maps averaged down to the common height and width."""
        same = maps.shape[2:] == (height, width)
        return widened(maps) if same else functional.adaptive_avg_pool2d(widened(maps), (height, width))

    return pooled(student), pooled(teacher)

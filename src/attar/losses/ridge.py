"""Kernel ridge regression by closed form: what KIP, FRePo and KRR-ST have in the place of an inner training loop."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses.reduction import Reduction, reduce


def kernel_ridge(support: Tensor, cross: Tensor, targets: Tensor, ridge: Tensor | float) -> Tensor:
    """Return K_ts (K_ss + ridge · I)⁻¹ y_s, the predictions `[m, d]` of kernel ridge regression, in float64.

    Args:
        support: K_ss `[n, n]`, symmetric and positive semi-definite.
        cross: K_ts `[m, n]`, rows for the points to predict.
        targets: y_s `[n, d]`.
        ridge: above 0. KIP and FRePo take λ times the mean of K_ss's diagonal, KRR-ST λ times its sum.

    Solved by Cholesky, differentiable in everything. Where K_ss + ridge · I is not positive definite all predictions
    are NaN, which a learner tells by name (Nguyen et al. 2021, arXiv 2011.00050, equation 4).

    Raises:
        RecipeError: shapes that do not fit together.
    """
    n = len(support)
    if support.shape != (n, n) or cross.shape[1:] != (n,) or targets.dim() != 2 or len(targets) != n:
        shapes = ", ".join(str(list(x.shape)) for x in (support, cross, targets))
        raise RecipeError(f"ridge regression takes kernels [n, n], [m, n] and targets [n, d]; got {shapes}")
    return cross.double() @ torch.cholesky_solve(targets.double(), _factor(support, ridge))


def solved_labels(support: Tensor, cross: Tensor, wanted: Tensor, ridge: Tensor | float) -> Tensor:
    """Return y_s = (K_ts (K_ss + ridge · I)⁻¹)⁺ y_t `[n, d]`, the support's labels that predict `wanted` `[m, d]` best.

    Of several that do the shortest is returned; float64 (label solve; Nguyen et al. 2021, arXiv 2011.00050, section 3).
    """
    operator = torch.cholesky_solve(cross.double().T, _factor(support, ridge)).T
    return torch.linalg.pinv(operator) @ wanted.double()


def _factor(support: Tensor, ridge: Tensor | float) -> Tensor:
    """Return the lower Cholesky factor of K_ss + ridge · I in float64, of NaN where there is none."""
    matrix = support.double()
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(matrix + ridge * identity)
    return factor.masked_fill(failed != 0, torch.nan)  # asking whether it failed would wait for the device


def squared_error(predictions: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return ½ ‖prediction − target‖² of each row of `[m, d]`, reduced over rows: the loss of KIP and FRePo."""
    return reduce(0.5 * (predictions - targets).square().sum(1), reduction)


def label_margin(labels: Tensor) -> Tensor:
    """Return mean_s[−min(top1(y_s) − top2(y_s), 1/C)] of learned labels `[n, C]`: their classes stay distinct.

    No gradient flows once the two largest are 1/C apart (Zhou et al. 2022, arXiv 2206.00719, official code).
    """
    first, second = labels.topk(2, dim=1).values.unbind(1)
    return -(first - second).clamp_max(1 / labels.shape[1]).mean()


def centred_one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return float32 `[n, C]` of 1 − 1/C at the label and −1/C elsewhere, from labels `[n]` int64.

    >>> centred_one_hot(torch.tensor([1]), 2).tolist()
    [[-0.5, 0.5]]
    """
    return functional.one_hot(labels, classes).float() - 1 / classes

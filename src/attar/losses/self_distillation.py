"""Self-distillation of kernel ridge regression by closed form: steps, their spectrum, the limit, the best weight.

Each step fits what the step before predicts, mixed with a share α of the ground truth (Borup & Andersen 2021, arXiv
2102.13088). α weighs the ground truth here, where other papers weigh the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attar.errors import RecipeError
from attar.losses.ridge import kernel_ridge


def self_distilled(support: Tensor, cross: Tensor, targets: Tensor, ridge: float, shares: Sequence[float]) -> Tensor:
    """Return the predictions of every step `[steps, m, d]`, in float64.

    ŷ⁰ = y, t_τ = α_τ y + (1 − α_τ) ŷ^(τ−1), ŷ^τ = K (K + λI)⁻¹ t_τ, f^τ = K_ts (K + λI)⁻¹ t_τ. Step 1 is plain ridge
    regression whatever its share (arXiv 2102.13088, section 3).

    Args:
        support: K `[n, n]`, symmetric and positive semi-definite.
        cross: K_ts `[m, n]`.
        targets: y `[n, d]`.
        ridge: λ, above 0.
        shares: α of each step, in [0, 1].

    Raises:
        RecipeError: shapes that do not fit together, or a share outside [0, 1].
    """
    truth, told, found = targets.double(), targets.double(), []
    for share in shares:
        wanted = _in_range(share) * truth + (1 - share) * told
        both = kernel_ridge(support, torch.cat([cross, support]), wanted, ridge)
        found.append(both[: len(cross)])
        told = both[len(cross) :]
    return torch.stack(found)


def self_distilled_spectrum(eigenvalues: Tensor, ridge: float, shares: Sequence[float]) -> Tensor:
    """Return what each step keeps of the targets along each eigenvector of the kernel, `[steps, n]` in [0, 1), float64.

    With A = d / (d + λ): B¹ = A and B^τ = A ((1 − α_τ) B^(τ−1) + α_τ), so that ŷ^τ = V B^τ Vᵀ y. For α = 0 it is A^τ:
    small eigenvalues die first (arXiv 2102.13088, theorem 3.1). Nothing is solved again.
    """
    values = eigenvalues.double()
    kept, found = torch.ones_like(values), []
    for share in shares:
        kept = values / (values + ridge) * ((1 - _in_range(share)) * kept + share)
        found.append(kept)
    return torch.stack(found)


def self_distillation_limit(support: Tensor, cross: Tensor, targets: Tensor, ridge: float, share: float) -> Tensor:
    """Return the predictions `[m, d]` after endlessly many steps of one share: α K_ts (α K + λI)⁻¹ y, float64.

    Ridge regression with λ / α, and 0 for α = 0 (arXiv 2102.13088, theorem 3.2).
    """
    if not _in_range(share):
        return torch.zeros(len(cross), targets.shape[1], dtype=torch.float64, device=targets.device)
    return kernel_ridge(support, cross, targets, ridge / share)


def best_share(truth: Tensor, on_labels: Tensor, on_predictions: Tensor, *, clip: bool = True) -> float:
    """Return α* = ⟨y − g, f − g⟩ / ‖f − g‖², under which α f + (1 − α) g is nearest to y, in [0, 1] unless not `clip`.

    `truth` y, `on_labels` f (fitted to labels) and `on_predictions` g (fitted to the last step's predictions), all
    `[n, d]` of validation samples. Ridge regression is linear in its targets, so there the mixture is what fitting the
    mixed targets gives; for networks it is an estimate. 1 where f and g are equal (arXiv 2102.13088, section 4).
    """
    truth, on_labels, on_predictions = truth.double(), on_labels.double(), on_predictions.double()
    apart = on_labels - on_predictions
    length = apart.square().sum()
    if not length:
        return 1.0
    share = float(((truth - on_predictions) * apart).sum() / length)
    return min(max(share, 0.0), 1.0) if clip else share


def _in_range(share: float) -> float:
    if not 0 <= share <= 1:
        raise RecipeError(f"the share of the ground truth lies between 0 and 1; got {share}")
    return share

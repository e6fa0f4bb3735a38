"""Which text belongs to which image: the contrastive loss of pairs, of which some may say the same."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses.numerics import product, widened
from attar.losses.reduction import Reduction, reduce


def pair_cross_entropy(
    images: Tensor,
    texts: Tensor,
    scale: float | Tensor,
    *,
    groups: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return ½ [CE(P, softmax(s I Uᵀ)) + CE(P, softmax(s U Iᵀ))], P even over all that say the same.

    `images` I, `texts` U: vectors of length 1 `[n, D]`, row i of one belonging to row i of the other, taken as they
    are. `groups` `[n]` integers: pairs of one group belong to one another as well, as those with the same caption do;
    without, P is the identity, and the loss CLIP's (Radford et al. 2021, arXiv 2103.00020).

    Raises:
        RecipeError: shapes that do not fit, or an unknown reduction.
    """
    if images.shape != texts.shape or images.dim() != 2 or (groups is not None and groups.shape != images.shape[:1]):
        shapes = [list(images.shape), list(texts.shape)] + ([] if groups is None else [list(groups.shape)])
        raise RecipeError(f"pairs are vectors [n, D] of images and of texts, with groups [n]; got {shapes}")
    scores = scale * product(widened(images), widened(texts).T)
    if groups is None:
        wanted = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
    else:
        alike = (groups[:, None] == groups[None]).to(scores.dtype)
        wanted = alike / alike.sum(1, keepdim=True)
    by_image, by_text = (-(wanted * functional.log_softmax(z, -1)).sum(-1) for z in (scores, scores.T))
    return reduce(0.5 * (by_image + by_text), reduction)

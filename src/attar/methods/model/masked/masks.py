"""Which patches an encoder reads: drawn at random, in blocks, complementary over views, or by redundancy."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import RecipeError
from attar.losses.numerics import directions
from attar.nets.masked import Masking


def random_masking(count: int, side: int, hidden: float, rng: torch.Generator, *, block: int = 1) -> Masking:
    """Return maskings of `count` images with `side`² places that hide a share `hidden` of them, drawn for each image.

    With `block` above 1 whole squares of `block`² places are hidden together, the last one in part where the number
    asks for it. The kept places come in the order of the draw (He et al. 2022, arXiv 2111.06377).

    Raises:
        RecipeError: nothing would be kept, or nothing hidden.
    """
    keep = kept_of(side**2, hidden)
    return Masking.of(_noise(count, side, block, rng).argsort(1), keep)


def disjoint_maskings(
    count: int,
    side: int,
    hidden: float,
    rng: torch.Generator,
    *,
    predicted: float = 1.0,
    views: int = 2,
    block: int = 1,
) -> list[Masking]:
    """Return `views` maskings of each image, each of which hides first what none before it hid (arXiv 2301.00230).

    Every view hides the same number of places, a share `hidden`. Together they hide a share `predicted` of the places,
    or as much as the views can. Drawn for each image, where the authors' code shares the second view's draw over the
    batch.

    Raises:
        RecipeError: the views hide more than `predicted` already, or nothing would be kept.
    """
    places = side**2
    keep = kept_of(places, hidden)
    masked = places - keep
    wanted = max(round(predicted * places), masked)
    if predicted < hidden:
        raise RecipeError(
            f"one view hides a share {hidden:g} of the patches, so all cannot hide {predicted:g}; raise predicted"
        )
    found: list[Masking] = []
    seen = torch.zeros(count, places, dtype=torch.bool)  # hidden in some view so far
    for _ in range(views):
        noise = _noise(count, side, block, rng)
        new = min(wanted - int(seen[0].sum()), masked)
        rank = noise.masked_fill(seen, -1.0).argsort(1, descending=True).argsort(1)  # of the places not yet hidden
        first = (rank < new) & ~seen
        order = noise + first * 4.0 + seen * 2.0  # the new ones, then those hidden before, then what stays visible
        found.append(Masking.of(order.argsort(1), keep))
        seen = seen | found[-1].hidden
    return found


def least_redundant(tokens: Tensor, share: float) -> Tensor:
    """Return ascending indices `[n, k]` of the share of tokens `[n, t, d]` that are least like the others.

    A token's redundancy is the mean cosine of its angles to all others of its image (Hybrid Distill, arXiv 2306.15876).
    """
    unit = directions(tokens.detach())
    count = tokens.shape[1]
    redundancy = ((unit @ unit.mT).sum(2) - 1) / max(count - 1, 1)
    keep = max(1, round(share * count))
    return redundancy.argsort(dim=1, stable=True)[:, :keep].sort(1).values


def kept_of(places: int, hidden: float) -> int:
    """Return how many of the places are kept where a share is hidden, as MAE rounds it.

    Raises:
        RecipeError: none, or all.
    """
    keep = int(places * (1 - hidden) + 1e-9)
    if not 0 < keep < places:
        raise RecipeError(
            f"hiding a share {hidden:g} of {places} patches keeps {keep}; choose hidden=… so that some are kept and "
            "some hidden, or smaller patches (net.patch=…)"
        )
    return keep


def _noise(count: int, side: int, block: int, rng: torch.Generator) -> Tensor:
    """Draw one number in [0, 1) for each place, alike in a block but for a little."""
    own = torch.rand(count, side * side, generator=rng)
    if block == 1:
        return own
    cells = -(-side // block)
    each = torch.rand(count, cells, cells, generator=rng)
    shared = each.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :side, :side].flatten(1)
    return (shared + own * 1e-4) / (1 + 1e-4)

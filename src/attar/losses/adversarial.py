"""Losses of two players: logits of a discriminator on real and on made samples, value by value."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from attar.errors import RecipeError, did_you_mean

Game = Literal["hinge", "softplus"]


def fooling_loss(fake: Tensor, game: Game = "hinge") -> Tensor:
    """Return what a generator minimises, like its logits: −D (hinge), or softplus(−D) (non-saturating).

    Raises:
        RecipeError: an unknown game.
    """
    return -fake if _known(game) == "hinge" else functional.softplus(-fake)


def telling_loss(real: Tensor, fake: Tensor, game: Game = "hinge") -> Tensor:
    """Return what a discriminator minimises, like the logits of real and made samples, which have one shape.

    hinge: ½ [max(0, 1 − D(real)) + max(0, 1 + D(fake))]; softplus: ½ [softplus(−D(real)) + softplus(D(fake))]. Sources:
    Lim and Ye 2017 (arXiv 1705.02894); Goodfellow et al. 2014 (arXiv 1406.2661).

    Raises:
        RecipeError: an unknown game.
    """
    if _known(game) == "hinge":
        return 0.5 * (torch.relu(1 - real) + torch.relu(1 + fake))
    return 0.5 * (functional.softplus(-real) + functional.softplus(fake))


def _known(game: Game) -> Game:
    if game not in get_args(Game):
        raise RecipeError(f"unknown game '{game}'{did_you_mean(game, get_args(Game))}")
    return game

"""Lottery tickets: whether a network still learns when most of its weights are taken away and it starts over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attar.errors import RecipeError


@dataclass(frozen=True)
class Ticket:
    """A sparse network behind its training: the share of weights that it has left, which ones, and the network."""

    kept: float
    masks: dict[str, Tensor]
    module: nn.Module


class _Masked(nn.Module):
    """A weight of which only some entries are there, in the forward and in the gradient."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros."""
        return weight * self.get_buffer("mask")


def tickets(
    module: nn.Module, train: Callable[[nn.Module], object], *, rounds: int, share: float = 0.2
) -> Iterator[Ticket]:
    """Yield networks of fewer and fewer weights, each trained from the same start: iterative pruning by magnitude.

    The first has all weights. Behind each training the `share` of smallest weights that are left, of all layers
    together, is taken away, and what remains goes back to where `module` is now, which is left as it is. Only weights
    of two dimensions and more are taken (Frankle & Carbin 2019, arXiv 1803.03635; from a checkpoint 1912.05671).

    Args:
        module: the start: a random network, a student, or an early checkpoint.
        train: trains a network in place, the same way in every round.
        rounds: trainings.
        share: of the weights left, in (0, 1).

    Raises:
        RecipeError: a share that leaves all or nothing.
    """
    if not 0 < share < 1:
        raise RecipeError(f"the share of weights taken in a round lies between 0 and 1; got {share}")
    masks = {name: torch.ones_like(p) for name, p in module.named_parameters() if p.dim() > 1}
    total = sum(mask.numel() for mask in masks.values())
    for _ in range(rounds):
        trained = copy.deepcopy(module)
        for name, mask in masks.items():
            owner, _, weight = name.rpartition(".")
            parametrize.register_parametrization(trained.get_submodule(owner), weight, _Masked(mask.clone()))
        train(trained)
        for name in masks:
            owner, _, weight = name.rpartition(".")
            parametrize.remove_parametrizations(trained.get_submodule(owner), weight, leave_parametrized=True)
        left = sum(int(mask.sum()) for mask in masks.values())
        yield Ticket(left / total, {name: mask.clone() for name, mask in masks.items()}, trained)
        masks = _pruned(trained, masks, round(left * (1 - share)))


@torch.no_grad()
def _pruned(module: nn.Module, masks: dict[str, Tensor], keep: int) -> dict[str, Tensor]:
    """Return masks of the `keep` largest weights of those that the masks have."""
    weights = dict(module.named_parameters())
    sizes = torch.cat([torch.where(mask > 0, weights[name].abs(), -1.0).flatten() for name, mask in masks.items()])
    flat = torch.zeros_like(sizes)
    flat[sizes.topk(keep).indices] = 1.0
    parts = flat.split([mask.numel() for mask in masks.values()])
    return {name: part.view_as(mask) for (name, mask), part in zip(masks.items(), parts, strict=True)}

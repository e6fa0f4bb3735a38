"""A label projector: an encoder with low-rank updates and a head, as small to store as its factors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from attar import losses
from attar.errors import RecipeError
from attar.methods.data.recovery.encoder import Encoder


class LowRank(nn.Module):
    """A parametrisation W ↦ W + B·A of a weight of any shape, seen as `[out, rest]`; B starts at zero (2106.09685)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows = weight.flatten(1)
        rank = min(rank, *rows.shape)
        down = nn.init.kaiming_uniform_(torch.empty(rank, rows.shape[1]), a=5**0.5)  # on the CPU: alike on all devices
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(rows.shape[0], rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight."""
        return weight + (self.up @ self.down).view_as(weight)


class Projector(nn.Module):
    """f(x) = exp(t) · normalise(E(x)) · (W + B·A)ᵀ, E an encoder whose convolutions and linear layers have updates.

    Before any training these are the cosines of the encoder's own classifier: zero-shot, where W are the embeddings of
    class names. Their scale is trained as CLIP's is, by its logarithm t.

    Args:
        encoder: E; it is copied, and stays frozen.
        directions: W, `[classes, features]`, of length 1.
        rank: of the updates of the encoder; 0: none, a linear probe.
        head_rank: of the update of W.
    """

    def __init__(self, encoder: Encoder, directions: Tensor, *, rank: int, head_rank: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.head = nn.Linear(directions.shape[1], directions.shape[0], bias=False, device=directions.device)
        self.head.requires_grad_(False)
        self.head.weight.copy_(directions)
        self.log_scale = nn.Parameter(torch.zeros((), device=directions.device))
        for layer in self.encoder.layers() if rank else []:
            weight: Any = layer.weight
            parametrize.register_parametrization(layer, "weight", LowRank(weight, rank))
        parametrize.register_parametrization(self.head, "weight", LowRank(self.head.weight, head_rank))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[n, classes]` of images `[n, C, S, S]` in the space networks see."""
        told: Tensor = self.head(functional.normalize(self.encoder(images), dim=1))
        return self.log_scale.exp() * told

    @torch.no_grad()
    def fit_scale(self, images: Tensor, wanted: Tensor) -> None:
        """Set the scale to its least-squares fit, s = Σ c·z / Σ c², to logits z `[n, classes]` of images `[n, C, …]`.

        Of the cosines c and of z the mean over the classes is taken away: what all classes of an image have in common
        tells none of them, and is far from zero in both. The scale is at least 1.
        """
        cosines = self(images) / self.log_scale.exp()
        c, z = (x - x.mean(1, keepdim=True) for x in (cosines, wanted))
        self.log_scale.copy_(((c * z).sum() / c.square().sum().clamp_min(1e-12)).clamp_min(1).log())

    @property
    def directions(self) -> Tensor:
        """W, the head without its update."""
        head: Any = self.head
        original: Tensor = head.parametrizations.weight.original
        return original

    def factors(self) -> dict[str, Tensor]:
        """Return what is trained, by name: all that has to be stored beside an encoder that everybody has."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def folded(self) -> Projector:
        """Return a copy with its updates added to the weights, which labels the same and faster, and trains no more."""
        made = copy.deepcopy(self)
        for layer in [layer for layer in made.modules() if parametrize.is_parametrized(layer, "weight")]:
            weight: Any = layer.weight
            # torch's own removal edits the class that a copy shares with this one, whose weights would be gone
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.register_parameter("weight", nn.Parameter(weight.detach()))
        return made.eval().requires_grad_(False)

    @torch.no_grad()
    def load_factors(self, factors: Mapping[str, Tensor]) -> None:
        """Take over trained factors.

        Raises:
            RecipeError: they belong to another encoder or another rank.
        """
        own = self.factors()
        if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in factors.items()}:
            raise RecipeError(
                "these factors belong to another encoder or another rank; give the encoder they came with"
            )
        for name, parameter in own.items():
            parameter.copy_(factors[name])


def projection_loss(told: Tensor, wanted: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Return MSE(f(x), y') + weight · CE(f(x), y), for logits `[n, classes]` and labels `[n]` (arXiv 2408.08201)."""
    return (told - wanted.detach()).square().mean() + weight * losses.cross_entropy(told, labels)


class ProjectedLoss:
    """MSE(z, f(x)) + β · CE(z, y): a student's loss for `fit`, with labels that the projector gives to each view.

    Args:
        projector: f.
        weight: β, of the hard labels.
    """

    def __init__(self, projector: nn.Module, weight: float) -> None:
        self.projector, self.weight = projector.eval().requires_grad_(False), weight

    def __call__(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a network on images `[n, C, S, S]` with classes `[n]`, or their one-hot `[n, classes]`."""
        with torch.no_grad():
            wanted = self.projector(images)
        return projection_loss(module(images), wanted, labels if labels.dim() == 1 else labels.argmax(1), self.weight)

"""Exits: small classifiers on a student's stages, there for training alone (OFA-KD, arXiv 2310.19444)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.nets.tokens import TransformerBlock

GRID = 7  # places a side down to which tokens are merged
HEADS = 4  # of the attention in an exit on tokens
STD = 0.02  # of linear layers' weights at the start


def staged(student: nn.Module, wanted: Sequence[int], most: int = 4) -> list[tuple[str, int]]:
    """Return the places of the wanted of `most` evenly spaced stages, each with how many of those come behind it.

    Stages count from 1 and the last of them is the network's last; a network of fewer has those it has.

    Raises:
        RecipeError: the network has no stages, or none of those that are wanted.
    """
    blocks = len(getattr(student, "stages", ()))
    if not blocks:
        raise RecipeError(f"{type(student).__name__} has no stages to put exits on; take one of Attar's networks")
    count = min(most, blocks)
    own = any(name == "stages.0" for name, _ in student.named_modules())
    at = "stages." if own else "stage:"  # of a network of transformers, whose tokens come as a map
    found = [(f"{at}{math.ceil(blocks * number / count) - 1}", count - number) for number in wanted if number <= count]
    if not found:
        raise RecipeError(f"{type(student).__name__} has {count} stages, and exits are wanted on {tuple(wanted)} alone")
    return found


def exit_of(shape: torch.Size, behind: int, width: int, classes: int, *, leading: int = 0) -> nn.Module:
    """Return an exit for one sample's `shape`: a map `[C, h, w]`, tokens `[t, C]`, or a vector `[C]`.

    Args:
        shape: of what the stage gives.
        behind: stages behind it; as many stride-2 blocks reduce a map, and that many blocks (1 at least) mix tokens.
        width: channels that a map ends with.
        classes: logits.
        leading: tokens ahead of the places, such as a class token.
    """
    made: nn.Module
    if len(shape) == 3:
        made = map_exit(shape[0], behind, width, classes)
    elif len(shape) == 2:
        made = TokenExit(shape[0], shape[1], max(behind, 1), classes, leading)
    else:
        made = nn.Linear(shape[0], classes)
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=STD)
            nn.init.zeros_(layer.bias)
    return made


def map_exit(channels: int, behind: int, width: int, classes: int) -> nn.Sequential:
    """Return stride-2 separable blocks that double the channels and end with `width`, a global mean, a linear layer.

    The last stage has no stage behind it, and a 1×1 convolution instead.
    """
    layers: list[nn.Module] = []
    for number in range(behind):
        outputs = width if number == behind - 1 else 2 * channels
        layers.append(separable(channels, outputs))
        channels = outputs
    if not behind:
        layers.append(nn.Conv2d(channels, width, 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def separable(inputs: int, outputs: int) -> nn.Sequential:
    """Return depthwise 3×3 of stride 2, pointwise, BN, ReLU, depthwise 3×3, pointwise, BN, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False),
        nn.Conv2d(inputs, inputs, 1, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class TokenExit(nn.Module):
    """Merge 2×2 places until at most 7×7 are left, mix all tokens in transformer blocks, classify their head.

    What is classified is the mean of the leading tokens, or of the places where there is none.
    """

    def __init__(self, tokens: int, width: int, depth: int, classes: int, leading: int) -> None:
        super().__init__()
        self.leading, side = leading, math.isqrt(tokens - leading)
        if side * side != tokens - leading:
            raise RecipeError(f"{tokens} tokens, {leading} of them no place, are no square; exits take square grids")
        self.side, merges = side, []
        while side > GRID:
            merges.append(nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, width), nn.GELU()))
            side = -(-side // 2)
        self.merges = nn.ModuleList(merges)
        heads = HEADS if width % HEADS == 0 else 1
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[n, classes]` of tokens `[n, t, width]`."""
        ahead, grid = tokens[:, : self.leading], tokens[:, self.leading :].unflatten(1, (self.side, self.side))
        for merge in self.merges:
            grid = merge(_by_fours(grid))
        mixed = self.norm(self.blocks(torch.cat([ahead, grid.flatten(1, 2)], 1)))
        read = mixed[:, : self.leading] if self.leading else mixed
        logits: Tensor = self.head(read.mean(1))
        return logits


def _by_fours(grid: Tensor) -> Tensor:
    """Return `[n, ⌈h/2⌉, ⌈w/2⌉, 4C]` of `[n, h, w, C]`: each 2×2 square as one; odd sides get zeros."""
    odd = grid.shape[1] % 2
    grid = nn.functional.pad(grid, (0, 0, 0, odd, 0, odd))
    return torch.cat([grid[:, row::2, column::2] for row in (0, 1) for column in (0, 1)], -1)

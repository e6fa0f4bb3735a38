"""Relations between the tokens of an image inside an attention layer, and encoders that lose tokens on their way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attar import losses
from attar.errors import RecipeError
from attar.methods.model.masked.masks import least_redundant
from attar.nets.masked import encode, last_norm
from attar.nets.tokens import TokenNetwork


def relation_logits(first: Tensor, second: Tensor, heads: int) -> Tensor:
    """Return a bᵀ / √d between tokens `[n, t, width]`, cut into `heads` of d channels: `[n, heads, t, t]`.

    Both sides of a comparison are cut into as many heads, whatever the heads of their attention
    (MiniLM's relation heads, arXiv 2012.15828).

    Raises:
        RecipeError: the heads do not divide the width.
    """
    if first.shape[-1] % heads:
        raise RecipeError(f"{heads} relation heads do not divide the width {first.shape[-1]}; set relation_heads")
    a, b = (side.unflatten(-1, (heads, -1)).transpose(1, 2) for side in (first, second))
    return a @ b.mT / a.shape[-1] ** 0.5


def relation_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax(teacher) ‖ softmax(student)), the mean over images, heads and tokens, of `[n, h, t, t]`."""
    return losses.kl_divergence(student.flatten(0, 2), teacher.flatten(0, 2), 1.0)


def queries_keys_values(block: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a block's attention makes of the tokens `[n, t, width]` that enter the block, each of their shape."""
    inside: Any = block
    queries, keys, values = inside.attention.mix(inside.attention_norm(tokens)).chunk(3, -1)
    return queries, keys, values


def chosen(tokens: Tensor, kept: Tensor) -> Tensor:
    """Return the tokens `[n, k, d]` of `[n, t, d]` at indices `[n, k]`."""
    return tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))


class Thinned:
    """An encoder's pass over images in which redundant places drop out at several depths.

    At the first block, and after each third of the blocks, those places leave that are most like the others; after the
    last time a share `keep` is left. The class token stays.

    Attributes:
        tokens: `[n, leading + k, width]` behind the last norm.
        kept: `[n, k]` ascending, the places that are left.
        read: what entered the blocks asked for, without the class token, at the places left then: number to
            (tokens, places).
    """

    def __init__(self, encoder: TokenNetwork, images: Tensor, keep: float, read: set[int]) -> None:
        leading = encoder.patches.leading
        tokens = encode(encoder, images, blocks=0)
        count = tokens.shape[1] - leading
        depth = len(encoder.stages)
        drops = {depth * third // 3: keep ** ((third + 1) / 3) for third in range(3)} if keep < 1 else {}
        self.kept = torch.arange(count, device=tokens.device).expand(len(tokens), -1)
        self.read: dict[int, tuple[Tensor, Tensor]] = {}
        for number, block in enumerate(encoder.stages):
            if number in drops:
                places = tokens[:, leading:]
                left = max(1, round(drops[number] * count)) / places.shape[1]
                some = least_redundant(places, min(left, 1.0))
                tokens = torch.cat([tokens[:, :leading], chosen(places, some)], 1)
                self.kept = self.kept.gather(1, some)
            if number in read:
                self.read[number] = (tokens, self.kept)
            tokens = block(tokens)
        self.tokens: Tensor = last_norm(encoder)(tokens)

"""A smaller dual encoder that starts from a part of a larger one's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.nets.dual import Block, DualEncoder, LanguageTower, VisionTower
from attar.nets.dual_specs import DualNet, Tower
from attar.spec import spec

T = TypeVar("T", bound=Tower)


@spec
class Shrunk:
    """The sizes of a smaller dual encoder; all else (patches, context, heads' width) is as in the larger one."""

    image_width: int = Field(ge=1)  # channels of a token; as many heads as fill it
    image_depth: int = Field(ge=1)  # blocks
    text_width: int = Field(ge=1)
    text_depth: int = Field(ge=1)
    dimensions: int | None = Field(None, ge=1)  # of the space where both meet; none: as in the larger one

    def of(self, parent: DualNet) -> DualNet:
        """Return the spec of a dual encoder of these sizes.

        Raises:
            RecipeError: heads do not fill a width.
        """
        return dataclasses.replace(
            parent,
            image=_sized(parent.image, self.image_width, self.image_depth, "image"),
            text=_sized(parent.text, self.text_width, self.text_depth, "text"),
            dimensions=self.dimensions or parent.dimensions,
        )


def _sized(tower: T, width: int, depth: int, what: str) -> T:
    if width % tower.head_width:
        raise RecipeError(
            f"{what}_width={width} is no multiple of {tower.head_width}, the width of the heads that are inherited"
        )
    heads = width // tower.head_width
    return dataclasses.replace(tower, width=width, depth=depth, heads=heads, hidden=4 * width, uneven=None)


@dataclass(frozen=True)
class BlockPart:
    """What is taken of a block: its number in the parent, and the numbers of heads and hidden units, int64."""

    block: int
    heads: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class TowerPart:
    """What is taken of a tower: the numbers of its channels `[width]`, int64, and of its blocks."""

    width: Tensor
    blocks: Sequence[BlockPart]

    @property
    def filled(self) -> list[BlockPart]:
        """The blocks of which something is taken."""
        return [block for block in self.blocks if len(block.heads) + len(block.hidden)]


def leading(parent: Tower, child: Tower, what: str) -> TowerPart:
    """Return the manual part: blocks 0, step, 2 · step, … with step = ⌊T / S⌋, and of everything in them the first.

    Heads are taken whole (Wu et al. 2023, arXiv 2309.12314, section 3.2; which blocks as in its code).

    Raises:
        RecipeError: the child is larger somewhere, or its heads are of another width.
    """
    depth = len(child.blocks)
    if parent.head_width != child.head_width:
        raise RecipeError(
            f"heads of the {what} tower are {child.head_width} wide, those that it inherits {parent.head_width}, and "
            "heads are taken whole"
        )
    if depth > len(parent.blocks) or child.width > parent.width:
        raise RecipeError(
            f"the {what} tower has {depth} blocks of width {child.width}, more than the {len(parent.blocks)} blocks of "
            f"width {parent.width} that it inherits; take fewer of both, or inherit=no"
        )
    step = len(parent.blocks) // depth if depth else 0
    parts = []
    for number, (heads, hidden) in enumerate(child.blocks):
        there = parent.blocks[number * step]
        if heads > there[0] or hidden > there[1]:
            raise RecipeError(
                f"block {number} of the {what} tower has {heads} heads and {hidden} hidden units, and inherits a block "
                f"of {there[0]} and {there[1]}; take fewer"
            )
        parts.append(BlockPart(number * step, torch.arange(heads), torch.arange(hidden)))
    return TowerPart(torch.arange(child.width), parts)


def leading_parts(parent: DualNet, child: DualNet) -> tuple[TowerPart, TowerPart]:
    """Return the manual parts of both towers.

    Raises:
        RecipeError: the child is larger somewhere.
    """
    if child.dimensions > parent.dimensions:
        raise RecipeError(f"dimensions are {child.dimensions}, more than the {parent.dimensions} that are inherited")
    return leading(parent.image, child.image, "image"), leading(parent.text, child.text, "text")


def net_of(parent: DualNet, parts: tuple[TowerPart, TowerPart]) -> DualNet:
    """Return the spec of what is left when no more than parts of a network are kept; empty blocks are left out."""
    return dataclasses.replace(parent, image=_cut(parent.image, parts[0]), text=_cut(parent.text, parts[1]))


def _cut(tower: T, part: TowerPart) -> T:
    uneven = tuple((len(block.heads), len(block.hidden)) for block in part.filled)
    return dataclasses.replace(tower, width=len(part.width), uneven=uneven)


@torch.no_grad()
def inherit(parent: DualEncoder, child: DualEncoder, parts: tuple[TowerPart, TowerPart]) -> None:
    """Give a child the chosen part of its parent's weights, in place; the scale of cosines stays its own.

    Raises:
        RecipeError: the child has another shape than the part, or other places or tokens than the parent.
    """
    image, text = parts
    old, new = parent.image, child.image
    if len(old.positions) != len(new.positions):
        raise RecipeError(
            f"the parent knows {len(old.positions) - 1} patches an image and the child {len(new.positions) - 1}; take "
            "images of the size that the parent was trained on"
        )
    if len(parent.text.tokens) != len(child.text.tokens):
        raise RecipeError("parent and child have different tokenizers; a child takes its parent's")
    _tower(old, new, image)
    new.class_token.copy_(old.class_token[image.width])
    new.patches.weight.copy_(old.patches.weight[image.width])
    _copy(old.first_norm, new.first_norm, image.width)
    _tower(parent.text, child.text, text)
    child.text.tokens.copy_(parent.text.tokens[:, text.width])
    for name, buffer in child.named_buffers():
        buffer.copy_(parent.get_buffer(name))
    child.end = parent.end


def _tower(old: VisionTower | LanguageTower, new: VisionTower | LanguageTower, part: TowerPart) -> None:
    """Copy what both towers have."""
    if len(new.blocks) != len(part.filled) or new.positions.shape[1] != len(part.width):
        raise RecipeError(f"a tower of {len(new.blocks)} blocks cannot take a part of {len(part.filled)}")
    width = part.width
    new.positions.copy_(old.positions[: len(new.positions), width])
    _copy(old.norm, new.norm, width)
    new.project.weight.copy_(old.project.weight[: new.project.out_features][:, width])
    for chosen, block in zip(part.filled, new.blocks, strict=True):
        _block(old.blocks[chosen.block], block, chosen, width)  # type: ignore[arg-type]


def _block(old: Block, new: Block, part: BlockPart, width: Tensor) -> None:
    if new.heads:
        _copy(old.attention_norm, new.attention_norm, width)
        each = old.project.in_features // old.heads
        rows = (part.heads[:, None] * each + torch.arange(each)).flatten()  # of queries, of keys, of values
        mixed = torch.cat([rows + kind * old.heads * each for kind in range(3)])
        _copy(old.mix, new.mix, mixed, width)
        _copy(old.project, new.project, width, rows)
    if new.hidden:
        _copy(old.mlp_norm, new.mlp_norm, width)
        _copy(old.expand, new.expand, part.hidden, width)
        _copy(old.contract, new.contract, width, part.hidden)


def _copy(old: nn.Module, new: nn.Module, rows: Tensor, columns: Tensor | None = None) -> None:
    """Copy rows and columns of a layer's weight, and rows of its shift."""
    weight = old.get_parameter("weight")[rows]
    new.get_parameter("weight").copy_(weight if columns is None else weight[:, columns])
    new.get_parameter("bias").copy_(old.get_parameter("bias")[rows])

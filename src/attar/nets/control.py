"""Trainable copies of a frozen transformer's first blocks, which see a picture and lead it (arXiv 2401.05252)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attar.diffusion.view import Condition
from attar.errors import RecipeError
from attar.nets.adapter_specs import ControlBlocks
from attar.nets.adapters import Adapted, tensors_of
from attar.nets.denoisers import ZeroLinear
from attar.nets.initialise import reset

TOLD = "control"  # name of the picture in a condition


@dataclasses.dataclass(eq=False)
class Leading:
    """What the copies know of the batch that passes through: the picture's tokens `[n, t, width]`, then their state."""

    on: bool = True
    tokens: Tensor | None = None


class LedBlock(nn.Module):
    """A frozen block with a trainable copy: block(h) + Z copy(h'), where h' comes from the copy before; Z is zero."""

    def __init__(self, inner: nn.Module, width: int, leading: Leading, *, first: bool) -> None:
        super().__init__()
        self.inner, self.copy, self.out = inner, copy.deepcopy(inner), ZeroLinear(width, width)
        self.leading, self.first = leading, first

    def forward(self, tokens: Tensor, *args: Any, **named: Any) -> Tensor:
        """Return the tokens `[n, t, width]`."""
        out: Tensor = self.inner(tokens, *args, **named)
        leading = self.leading
        if not leading.on:
            return out
        assert leading.tokens is not None
        leading.tokens = self.copy(tokens + leading.tokens if self.first else leading.tokens, *args, **named)
        led: Tensor = out + self.out(leading.tokens)
        return led

    def __getattr__(self, name: str) -> Any:
        """Return what a block of that kind has: networks of diffusers look into their first one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Controlled(Adapted):
    """A frozen transformer led by pictures: its condition is a mapping with `control` `[n, channels, H, W]`."""

    def __init__(self, network: nn.Module, frozen: dict[str, Tensor], entry: nn.Module, leading: Leading) -> None:
        super().__init__(network, frozen, frozenset())
        self.entry, self.leading = entry, leading

    def switch(self) -> None:
        """Turn the copies on or off."""
        self.leading.on = self.on

    def forward(self, x: Tensor, label: Tensor, condition: Condition = None) -> Tensor:
        """Return the prediction `[n, C, H, W]`.

        Raises:
            RecipeError: the copies are on, and no picture is told.
        """
        told = dict(condition) if isinstance(condition, Mapping) else {"condition": condition}
        picture = told.pop(TOLD, None)
        own: Any = told["condition"] if told.keys() == {"condition"} else told or None
        if self.on:
            if picture is None:
                raise RecipeError(
                    "this network is led by a picture: give the condition as a mapping, "
                    "{'condition': labels [n], 'control': pictures [n, channels, H, W]}"
                )
            self.leading.tokens = self.entry(picture.to(x)).flatten(2).transpose(1, 2)
        out: Tensor = self.network(x, label, own)
        self.leading.tokens = None
        return out

    def merged(self) -> nn.Module:
        """Refuse: no weights can stand for a picture."""
        raise RecipeError("these blocks are led by a picture, which no weights can stand for; keep them")


class Entry(nn.Module):
    """Patches of a picture through a layer that is zero at first."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patches, self.out = nn.Conv2d(channels, width, patch, patch), ZeroLinear(width, width)

    def forward(self, picture: Tensor) -> Tensor:
        """Return maps `[n, width, H / patch, W / patch]`."""
        made: Tensor = self.out(self.patches(picture).movedim(1, -1)).movedim(-1, 1)
        return made


def with_control(network: nn.Module, spec: ControlBlocks, rng: torch.Generator) -> Controlled:
    """Return the network, changed in place, with copies of its first blocks beside them.

    Raises:
        RecipeError: a network that is no transformer of patches.
    """
    frozen = tensors_of(network)
    owners = [(owner, name) for owner in network.modules() for name in ("blocks", "transformer_blocks")]
    lists = [found for owner, name in owners if isinstance(found := getattr(owner, name, None), nn.ModuleList)]
    patches = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if not lists or patches is None or patches.kernel_size != patches.stride:
        raise RecipeError(
            f"control copies the blocks of a transformer of patches, and {type(network).__name__} is none; take a "
            "teacher with net=dit, or of a DiT or PixArt class of diffusers"
        )
    leading, width = Leading(), patches.out_channels
    entry = Entry(spec.channels, width, patches.stride[0])
    reset(entry, rng)
    for place, block in enumerate(list(lists[0])[: spec.blocks]):
        lists[0][place] = LedBlock(block, width, leading, first=place == 0)
    return Controlled(network, frozen, entry.to(patches.weight.device), leading)

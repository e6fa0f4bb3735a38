"""A small U-Net for images of 14 to 32 pixels; odd sides are met by nearest neighbours on the way up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.diffusion.view import Condition
from attar.nets.denoiser_specs import Extras, Form, UNet
from attar.nets.denoisers import Attention, DenoiserNetwork, ZeroLinear

GROUPS = 8  # of the norms


class ZeroConvolution(nn.Conv2d):
    """A 3×3 convolution that begins at zero."""

    def reset_parameters(self) -> None:
        """Set everything to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Block(nn.Module):
    """A residual block on maps, with scale and shift by the embedding; its second convolution is zero at first."""

    def __init__(self, inputs: int, outputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.before, self.first = nn.GroupNorm(GROUPS, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.after, self.second = nn.GroupNorm(GROUPS, outputs), ZeroConvolution(outputs, outputs, 3, padding=1)
        self.modulation = ZeroLinear(width, 2 * outputs)
        self.past = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Return `[n, outputs, height, width]`."""
        inner = self.after(self.first(functional.silu(self.before(h))))
        scale, shift = self.modulation(e)[:, :, None, None].chunk(2, 1)
        inner = self.dropout(functional.silu(inner * (1 + scale) + shift))
        out: Tensor = self.past(h) + self.second(inner)
        return out


class Places(nn.Module):
    """Self-attention over the places of a map, added to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.GroupNorm(GROUPS, channels), Attention(channels, channels // GROUPS)

    def forward(self, h: Tensor) -> Tensor:
        """Return a map of the same shape."""
        tokens = self.attention(self.norm(h).flatten(2).transpose(1, 2))
        return h + tokens.transpose(1, 2).reshape(h.shape)


class UNetNetwork(DenoiserNetwork):
    """See `UNet`."""

    def __init__(self, spec: UNet, form: Form, extras: Extras) -> None:
        embedding = 4 * spec.width
        super().__init__(form, embedding, spec.frequency, extras)
        channels = [spec.width * times for times in spec.multipliers]
        self.inside = nn.Conv2d(form.shape[0], channels[0], 3, padding=1)
        skips, here = [channels[0]], channels[0]
        self.down = nn.ModuleList()
        for level, wide in enumerate(channels):
            for number in range(spec.blocks):
                self.down.append(Block(here if number == 0 else wide, wide, embedding, spec.dropout))
                here = wide
                skips.append(here)
            if level < len(channels) - 1:
                self.down.append(nn.AvgPool2d(2, ceil_mode=True))
                skips.append(here)
        self.middle = nn.ModuleList([Block(here, here, embedding, spec.dropout), Places(here)])
        self.up = nn.ModuleList()
        while skips:
            skip = skips.pop()
            self.up.append(Block(here + skip, skip, embedding, spec.dropout))
            here = skip
        self.norm, self.out = nn.GroupNorm(GROUPS, here), ZeroConvolution(here, form.shape[0], 3, padding=1)

    def forward(self, x: Tensor, label: Tensor, condition: Condition = None) -> Tensor:
        """Return the prediction `[n, C, H, W]`."""
        e = functional.silu(self.embed(label, condition))
        maps = [self.inside(x)]
        for layer in self.down:
            maps.append(layer(maps[-1], e) if isinstance(layer, Block) else layer(maps[-1]))
        h = self.middle[1](self.middle[0](maps[-1], e))
        for layer in self.up:
            skip = maps.pop()
            h = layer(torch.cat([to_side(h, skip), skip], 1), e)
        out: Tensor = self.out(functional.silu(self.norm(h)))
        return out


def to_side(h: Tensor, like: Tensor) -> Tensor:
    """Return the map doubled by nearest neighbours and cut to the sides of another; one of these sides as it is."""
    if h.shape[2:] == like.shape[2:]:
        return h
    doubled = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return doubled[:, :, : like.shape[2], : like.shape[3]]

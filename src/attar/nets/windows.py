"""Networks whose maps shrink stage by stage as a convolutional network's do: Swin and ConvNeXt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.nets.network import Network
from attar.nets.token_specs import ConvNeXt, Swin, whole
from attar.nets.tokens import EPSILON, STD, Attention, mlp, pad_to


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map `[n, C, h, w]`, place by place."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Merge(nn.Module):
    """Make every 2×2 square of a map one place of twice the channels."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * inputs)
        self.reduce = nn.Linear(4 * inputs, 2 * inputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, C, h, w]` to `[n, 2C, h / 2, w / 2]`."""
        squares = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [n, C, h / 2, 2, w / 2, 2]
        joined = squares.permute(0, 2, 4, 5, 3, 1).flatten(3)  # down a square's column, then the next, as published
        out: Tensor = self.reduce(self.norm(joined)).movedim(-1, 1)
        return out


class WindowAttention(nn.Module):
    """Attention among the places of each window, with a learned bias for every offset between two places.

    Windows lie `shift` places further right and below, around the map's border; places that the border parts do not see
    each other, nor does a place see the padding of a map that windows do not fill.
    """

    def __init__(self, width: int, heads: int, *, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.attention = Attention(width, heads)
        self.offsets = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the biases of the offsets again."""
        nn.init.trunc_normal_(self.offsets, std=STD)

    def forward(self, x: Tensor) -> Tensor:
        """Map places `[n, side, side, width]` to places of the same shape."""
        side, w = x.shape[1], self.window
        full = whole(side, w)
        x = functional.pad(x, (0, 0, 0, full - side, 0, full - side))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        out = self.attention(_windows(x, w), self._bias(side, full))
        out = out.unflatten(1, (full // w, full // w)).unflatten(3, (w, w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.shift:
            out = out.roll((self.shift, self.shift), (1, 2))
        return out[:, :side, :side]

    def _bias(self, side: int, full: int) -> Tensor:
        """Return what is added to the weights' logarithms, `[windows or 1, heads, w · w, w · w]`."""
        w = self.window
        along = torch.arange(w, device=self.offsets.device)
        apart = along[:, None] - along + w - 1  # 0 … 2w − 2
        index = apart[:, None, :, None] * (2 * w - 1) + apart[None, :, None, :]  # [row, column, row, column]
        bias = self.offsets[index.flatten()].unflatten(0, (w * w, w * w)).permute(2, 0, 1)[None]
        if not self.shift and side == full:
            return bias
        place = (torch.arange(full, device=along.device) + self.shift) % full  # before the map was shifted
        part = torch.where(place >= side, 2, (place < self.shift).long())  # padding, around the border, neither
        parts = _windows((3 * part[:, None] + part)[None, :, :, None], w)[0, :, :, 0]  # [windows, w · w]
        return bias.masked_fill((parts[:, :, None] != parts[:, None, :])[:, None], float("-inf"))


class SwinBlock(nn.Module):
    """Attention in windows, then an MLP, each behind a layer norm and added to its input."""

    def __init__(self, width: int, heads: int, *, window: int, shift: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window=window, shift=shift)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, width, side, side]` to a map of the same shape."""
        x = x.movedim(1, -1)
        x = x + self.attention(self.attention_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x.movedim(-1, 1)


class NextBlock(nn.Module):
    """A 7×7 convolution of each channel by itself, layer norm and an MLP, scaled and added to the input."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.start = scale
        self.convolve = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.mlp = mlp(width, 4 * width)
        self.scale = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to its start."""
        nn.init.constant_(self.scale, self.start)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, width, side, side]` to a map of the same shape."""
        changed = self.mlp(self.norm(self.convolve(x).movedim(1, -1)))
        out: Tensor = x + (self.scale * changed).movedim(-1, 1)
        return out


def swin(spec: Swin, channels: int, size: int, classes: int) -> Network:
    """Return stages of blocks whose windows move by half in every second; each later stage merges 2×2 places first."""
    side, width, heads = whole(size, spec.multiple) // spec.patch, spec.width, spec.heads
    stages: list[nn.Module] = []
    for number, depth in enumerate(spec.depths):
        if number:
            layers: list[nn.Module] = [Merge(width)]
            side, width, heads = side // 2, width * 2, heads * 2
        else:
            patches = nn.Conv2d(channels, width, spec.patch, spec.patch)
            layers = [pad_to(size, spec.multiple), patches, ChannelNorm(width)]
        window = min(spec.window, side)
        half = window // 2 if side > window else 0
        layers += [SwinBlock(width, heads, window=window, shift=half * (place % 2)) for place in range(depth)]
        stages.append(nn.Sequential(*layers))
    collapse = nn.Sequential(ChannelNorm(width), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(stages, [nn.Identity() for _ in stages], collapse, width, classes)


def convnext(spec: ConvNeXt, channels: int, size: int, classes: int) -> Network:
    """Return stages of blocks; each later stage halves the map by a 2×2 convolution behind a layer norm first."""
    width = spec.width
    stages: list[nn.Module] = []
    for number, depth in enumerate(spec.depths):
        if number:
            layers: list[nn.Module] = [ChannelNorm(width, EPSILON), nn.Conv2d(width, 2 * width, 2, 2)]
            width *= 2
        else:
            patches = nn.Conv2d(channels, width, spec.patch, spec.patch)
            layers = [pad_to(size, spec.multiple), patches, ChannelNorm(width, EPSILON)]
        stages.append(nn.Sequential(*layers, *(NextBlock(width, spec.scale) for _ in range(depth))))
    collapse = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(width, EPSILON))
    return Network(stages, [nn.Identity() for _ in stages], collapse, width, classes)


def _windows(x: Tensor, window: int) -> Tensor:
    """Return places `[n, h, w, C]` as windows `[n, windows, window · window, C]`, both row by row."""
    cut = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)

"""Networks on tokens `[n, t, channels]`, one a patch of the image: vision transformers and MLP-Mixer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attar.nets.network import Network
from attar.nets.token_specs import Mixer, ViT, whole

EPSILON = 1e-6  # of the layer norms, as in the field's code
STD = 0.02  # of the normal, cut at two, from which positions and class tokens start


class TokenNetwork(Network):
    """A `Network` whose `stages` are blocks on tokens; `features` gives their tokens as maps `[n, channels, h, w]`.

    What passes through `stages.i` is `[n, t, channels]`, with `patches.leading` tokens (the class token) ahead of the
    h · w places. The maps leave those out.
    """

    def __init__(
        self, patches: Patches, blocks: Sequence[nn.Module], collapse: nn.Module, features: int, classes: int
    ) -> None:
        super().__init__(blocks, [nn.Identity() for _ in blocks], collapse, features, classes)
        self.patches = patches

    def embed(self, x: Tensor) -> Tensor:
        """Return the embedding `[n, num_features]`: the input of the linear head."""
        return super().embed(self.patches(x))

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the places' tokens behind every block as maps `[n, channels, h, w]`, and the embedding."""
        tokens, embedding = super().features(self.patches(x))
        return [self.map_of(some) for some in tokens], embedding

    def map_of(self, given: Any) -> Tensor:
        """Return the places' tokens `[n, t, channels]` as a map."""
        return self.patches.map_of(given)


class Patches(nn.Module):
    """Cut an image, padded at its borders where need be, into patches, and make each a token.

    Args:
        channels: of the image.
        size: pixels a side of the image.
        patch: pixels a side of a patch.
        width: channels of a token.
        leading: learned tokens ahead of the patches'.
        positions: every token gets a learned vector added.
    """

    def __init__(
        self, channels: int, size: int, patch: int, width: int, *, leading: int = 0, positions: bool = True
    ) -> None:
        super().__init__()
        self.side, self.leading = whole(size, patch) // patch, leading
        self.pad = pad_to(size, patch)
        self.project = nn.Conv2d(channels, width, patch, patch)
        self.learned = nn.Parameter(torch.empty(1, leading, width)) if leading else None
        self.positions = nn.Parameter(torch.empty(1, leading + self.side**2, width)) if positions else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the learned tokens and positions again."""
        for parameter in (self.learned, self.positions):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=STD)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens `[n, leading + h · w, width]`, the places row by row."""
        tokens: Tensor = self.project(self.pad(x)).flatten(2).transpose(1, 2)
        if self.learned is not None:
            tokens = torch.cat([self.learned.expand(tokens.shape[0], -1, -1), tokens], 1)
        return tokens if self.positions is None else tokens + self.positions

    def map_of(self, tokens: Tensor) -> Tensor:
        """Return the places' tokens as a map `[n, channels, h, w]`."""
        return tokens[:, self.leading :].transpose(1, 2).unflatten(2, (self.side, self.side))


class Attention(nn.Module):
    """Scaled dot-product attention over tokens `[…, t, width]`.

    Written out, so that it is differentiable twice and a hook on `softmax` reads the weights `[…, heads, t, t]`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.mix = nn.Linear(width, 3 * width)  # queries, keys, values
        self.softmax = nn.Softmax(-1)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the mixed tokens; `bias` is added to the weights' logarithms `[…, heads, t, t]`."""
        split = self.mix(x).unflatten(-1, (3, self.heads, -1)).transpose(-4, -2)  # […, heads, 3, t, width / heads]
        queries, keys, values = split.unbind(-3)
        scores = (queries * self.scale) @ keys.transpose(-1, -2)
        weights = self.softmax(scores if bias is None else scores + bias)
        out: Tensor = self.project((weights @ values).transpose(-3, -2).flatten(-2))
        return out


class TransformerBlock(nn.Module):
    """Attention, then an MLP, each behind a layer norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, EPSILON)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, EPSILON)
        self.mlp = mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `[n, t, width]` to tokens of the same shape."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class MixerBlock(nn.Module):
    """An MLP over the places, then one over the channels, each behind a layer norm and added to its input."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.place_norm = nn.LayerNorm(width, EPSILON)
        self.place_mlp = mlp(places, width // 2)
        self.channel_norm = nn.LayerNorm(width, EPSILON)
        self.channel_mlp = mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `[n, places, width]` to tokens of the same shape."""
        x = x + self.place_mlp(self.place_norm(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.channel_mlp(self.channel_norm(x))
        return out


class FirstTokens(nn.Module):
    """The first `count` of the tokens `[n, t, width]`, one behind the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """Return them, `[n, count · width]`."""
        return x[:, : self.count].flatten(1)


class MeanToken(nn.Module):
    """The mean of the tokens `[n, t, width]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return it, `[n, width]`."""
        return x.mean(1)


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Return two linear layers with GELU between them, over the last dimension."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def pad_to(size: int, multiple: int) -> nn.Module:
    """Return zero padding of images `size` pixels a side to a multiple, the odd pixel right and below."""
    rest = whole(size, multiple) - size
    before, after = rest // 2, rest - rest // 2
    return nn.ZeroPad2d((before, after, before, after)) if rest else nn.Identity()


def vit(spec: ViT, channels: int, size: int, classes: int) -> TokenNetwork:
    """Return patches with positions, `depth` blocks, a layer norm, and what `pool` says of the tokens.

    With a distillation token (DeiT, arXiv 2012.12877) the embedding is both tokens, and one linear layer reads them: it
    is the mean of two heads, each of one token.
    """
    leading = {"class": 1, "mean": 0, "class+distilled": 2}[spec.pool]
    patches = Patches(channels, size, spec.patch, spec.width, leading=leading)
    blocks = [TransformerBlock(spec.width, spec.heads) for _ in range(spec.depth)]
    collapse = nn.Sequential(nn.LayerNorm(spec.width, EPSILON), FirstTokens(leading) if leading else MeanToken())
    return TokenNetwork(patches, blocks, collapse, max(leading, 1) * spec.width, classes)


def mixer(spec: Mixer, channels: int, size: int, classes: int) -> TokenNetwork:
    """Return patches without positions, `depth` blocks, a layer norm and the mean of all places."""
    patches = Patches(channels, size, spec.patch, spec.width, positions=False)
    blocks = [MixerBlock(spec.width, patches.side**2) for _ in range(spec.depth)]
    collapse = nn.Sequential(nn.LayerNorm(spec.width, EPSILON), MeanToken())
    return TokenNetwork(patches, blocks, collapse, spec.width, classes)

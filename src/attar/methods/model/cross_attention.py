"""A projector that asks a student's map for a teacher's, there for training alone (ScaleKD, arXiv 2411.06786)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attar.methods.model.regressors import both_maps
from attar.nets.attention import attention
from attar.nets.network import convolution
from attar.nets.tokens import STD


class CrossAttentionProjector(nn.Module):
    """Bring a map `[n, C, h, w]` to a teacher's channels and places by cross-attention: each of its places asks.

    Keys and values are the student's places behind a 3×3 convolution, batch norm and ReLU, with a learned position
    each; queries are learned, or a map that is handed in, behind a 1×1 convolution and ReLU. The attention's logits are
    ⟨q, k⟩ · sharpness / √(width of a head); behind it come a linear layer, layer norm x, and x + MLP(x).

    Args:
        student: shape of one sample of the student, `[C, h, w]`.
        teacher: that of the teacher's map.
        heads: of the attention; of a width they do not divide, the most of their divisors that do.
        sharpness: of the attention.
        learned: whether there are learned queries.
    """

    def __init__(
        self, student: torch.Size, teacher: torch.Size, *, heads: int, sharpness: float, learned: bool = True
    ) -> None:
        super().__init__()
        both_maps(student, teacher)
        channels, width = student[0], teacher[0]
        self.heads = math.gcd(heads, width)
        self.scale = sharpness * (width // self.heads) ** -0.5
        self.mix = convolution(channels, channels)
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, *student), std=STD))
        self.queries = nn.Parameter(torch.randn(1, *teacher)) if learned else None
        self.prepare = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU())
        self.ask, self.keys, self.values = (nn.Linear(inputs, width) for inputs in (width, channels, channels))
        self.project = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, maps: Tensor, queries: Tensor | None = None) -> Tensor:
        """Return the map `[n, *teacher]`; `queries` `[n, *teacher]` stand in for learned ones."""
        asked = self.queries if queries is None else queries
        assert asked is not None  # who makes a projector without learned queries hands some in
        places = _tokens(self.mix(maps) + self.positions)
        q = self._split(self.ask(_tokens(self.prepare(asked)))).expand(len(maps), -1, -1, -1)
        k, v = self._split(self.keys(places)), self._split(self.values(places))
        mixed = attention(q, k, v, scale=self.scale)
        x = self.norm(self.project(mixed.transpose(1, 2).flatten(2)))
        out: Tensor = (x + self.mlp(x)).transpose(1, 2).unflatten(2, asked.shape[2:])
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        """Return tokens `[n, t, width]` as `[n, heads, t, width / heads]`."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ConvolutionProjector(nn.Module):
    """Bring a map to a teacher's channels by a 1×1 convolution, and to its grid by mean pooling: nobody asks.

    The foil of the paper's ablation. Arguments as above.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size) -> None:
        super().__init__()
        both_maps(student, teacher)
        self.align, self.pool = nn.Conv2d(student[0], teacher[0], 1), nn.AdaptiveAvgPool2d(teacher[1:])

    def forward(self, maps: Tensor, queries: Tensor | None = None) -> Tensor:
        """Return the map `[n, *teacher]`."""
        out: Tensor = self.pool(self.align(maps))
        return out


def _tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)

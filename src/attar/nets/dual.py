"""Dual encoders: an image tower, a text tower, and a scale for their cosines. The arithmetic is CLIP's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.losses.numerics import directions
from attar.nets.attention import attention
from attar.nets.dual_specs import DualNet, ImageTower, TextTower, Tower
from attar.nets.initialise import ImageShape, seeded
from attar.nets.transformers_network import Sight

START_SCALE = 1 / 0.07  # of the cosines, where it is learned
LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class BlockGates:
    """What each part of a block is multiplied by: `heads` `[h]`, `hidden` `[units]`, `attention` and `mlp` `[]`."""

    attention: Tensor
    heads: Tensor
    mlp: Tensor
    hidden: Tensor

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Attention, heads, MLP, hidden units."""
        return self.attention, self.heads, self.mlp, self.hidden


@dataclass(frozen=True)
class TowerGates:
    """What a tower's parts are multiplied by, numbers in [0, 1]; `width` `[width]` is shared by all blocks."""

    width: Tensor
    blocks: Sequence[BlockGates]


class Block(nn.Module):
    """Attention, then an MLP, each behind a layer norm and added to its input; either may be missing.

    Args:
        width: channels of a token.
        heads: of the attention; 0: none.
        hidden: units of the MLP; 0: none.
        head_width: channels of a head.
        activation: of the MLP.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, head_width: int, activation: str) -> None:
        super().__init__()
        self.heads, self.hidden, self.quick = heads, hidden, activation == "quick-gelu"
        if heads:
            self.attention_norm = nn.LayerNorm(width)
            self.mix = nn.Linear(width, 3 * heads * head_width)  # queries, keys, values
            self.project = nn.Linear(heads * head_width, width)
        if hidden:
            self.mlp_norm = nn.LayerNorm(width)
            self.expand = nn.Linear(width, hidden)
            self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor, causal: bool, width: Tensor | None = None, gates: BlockGates | None = None) -> Tensor:
        """Map tokens `[n, t, width]` to tokens of the same shape."""
        whole, heads, mlp, hidden = (None,) * 4 if gates is None else gates.all
        if self.heads:
            x = x + gated(self._attend(x, causal, width, heads), width, whole)
        if self.hidden:
            inner = self.expand(normed(self.mlp_norm, x, width))
            inner = inner * torch.sigmoid(1.702 * inner) if self.quick else functional.gelu(inner)
            x = x + gated(self.contract(gated(inner, hidden)), width, mlp)
        return x

    def _attend(self, x: Tensor, causal: bool, width: Tensor | None, heads: Tensor | None) -> Tensor:
        split = self.mix(normed(self.attention_norm, x, width)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # [n, heads, t, head_width] each
        mixed = attention(queries, keys, values, causal=causal)
        mixed = gated(mixed, None if heads is None else heads[:, None, None])
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out


def gated(x: Tensor, *gates: Tensor | None) -> Tensor:
    """Return x times the gates that there are."""
    for gate in gates:
        x = x if gate is None else x * gate
    return x


def normed(norm: nn.LayerNorm, x: Tensor, width: Tensor | None) -> Tensor:
    """Return the layer norm of x over the channels whose gate is above 0, and 0 in the others.

    So a network with closed gates computes what one without those channels does.
    """
    if width is None:
        out: Tensor = norm(x)
        return out
    kept = (width > 0).to(x.dtype)
    count = kept.sum().clamp_min(1)
    centred = (x - (x * kept).sum(-1, keepdim=True) / count) * kept
    variance = centred.square().sum(-1, keepdim=True) / count
    return (centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias) * kept


class _Towers(nn.Module):
    """What both towers are: positions, blocks, a norm and a projection."""

    def __init__(self, spec: Tower, places: int, dimensions: int, activation: str) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(places, spec.width))
        self.blocks = nn.ModuleList(
            Block(spec.width, heads, hidden, head_width=spec.head_width, activation=activation)
            for heads, hidden in spec.blocks
        )
        self.norm = nn.LayerNorm(spec.width)
        self.project = nn.Linear(spec.width, dimensions, bias=False)

    def through(self, x: Tensor, causal: bool, gates: TowerGates | None) -> Tensor:
        """Return tokens `[n, t, width]` behind all blocks."""
        width = None if gates is None else gates.width
        for number, block in enumerate(self.blocks):
            x = block(x, causal, width, None if gates is None else gates.blocks[number])
        return x

    def read_off(self, token: Tensor, gates: TowerGates | None) -> Tensor:
        """Return the vectors of length 1 `[n, dimensions]` that tokens `[n, width]` stand for."""
        return directions(self.project(normed(self.norm, token, None if gates is None else gates.width)))


class VisionTower(_Towers):
    """Images `[n, channels, side, side]` to vectors of length 1 `[n, dimensions]`."""

    def __init__(self, spec: ImageTower, channels: int, side: int, dimensions: int, activation: str) -> None:
        super().__init__(spec, 1 + (side // spec.patch) ** 2, dimensions, activation)
        self.patches = nn.Conv2d(channels, spec.width, spec.patch, spec.patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(spec.width))
        self.first_norm = nn.LayerNorm(spec.width)

    def forward(self, x: Tensor, gates: TowerGates | None = None) -> Tensor:
        """Return the vectors."""
        width = None if gates is None else gates.width
        places = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), 1, -1), places], 1) + self.positions
        tokens = gated(normed(self.first_norm, gated(tokens, width), width), width)
        return self.read_off(self.through(tokens, False, gates)[:, 0], gates)


class LanguageTower(_Towers):
    """Ids `[n, t]` of tokens, at most `context` of them, to vectors of length 1 `[n, dimensions]`."""

    def __init__(self, spec: TextTower, vocabulary: int, dimensions: int, activation: str) -> None:
        super().__init__(spec, spec.context, dimensions, activation)
        self.tokens = nn.Parameter(torch.empty(vocabulary, spec.width))

    def forward(self, ids: Tensor, end: int, gates: TowerGates | None = None) -> Tensor:
        """Return the vectors; each text is read where the id `end` first stands."""
        last = (ids == end).int().argmax(1)
        ids = ids[:, : max(last.tolist(), default=0) + 1]  # no token sees those behind it
        x = functional.embedding(ids, self.tokens) + self.positions[: ids.shape[1]]
        x = gated(x, None if gates is None else gates.width)
        x = self.through(x, True, gates)
        return self.read_off(x[torch.arange(len(x), device=x.device), last], gates)


class DualEncoder(nn.Module):
    """Two towers into one space; images are shown in the size, channels and contrast that their tower knows.

    Attributes:
        end: the id at which texts are read.
        log_scale: logarithm of what cosines are multiplied by.
        contrast, shift: `[channels]`, from the data's normalised space to the one that the weights know; 1 and 0 where
            they were learned on such data.
    """

    def __init__(self, spec: DualNet, channels: int, size: int, vocabulary: int) -> None:
        super().__init__()
        side = spec.side(size)
        seen = spec.image.channels or channels
        self.sight = Sight(channels, seen, side)
        self.image = VisionTower(spec.image, seen, side, spec.dimensions, spec.activation)
        self.text = LanguageTower(spec.text, vocabulary, spec.dimensions, spec.activation)
        self.log_scale = nn.Parameter(torch.empty(()))
        self.register_buffer("contrast", torch.ones(seen))
        self.register_buffer("shift", torch.zeros(seen))
        self.end = 2
        if not self.log_scale.is_meta:
            self.reset_parameters()

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by."""
        return self.log_scale.exp()

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the scale to at most 100, as CLIP does after each step; a bound where it is used would hold it there."""
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    def images(self, x: Tensor, gates: TowerGates | None = None) -> Tensor:
        """Return vectors of length 1 `[n, dimensions]` of images in the space that networks see."""
        seen = self.sight(x) * self.get_buffer("contrast")[:, None, None] + self.get_buffer("shift")[:, None, None]
        out: Tensor = self.image(seen, gates)
        return out

    def texts(self, ids: Tensor, gates: TowerGates | None = None) -> Tensor:
        """Return vectors of length 1 `[n, dimensions]` of token ids `[n, t]`."""
        out: Tensor = self.text(ids, self.end, gates)
        return out

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of both."""
        return self.images(images), self.texts(ids)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights as CLIP does (arXiv 2103.00020, and its code)."""
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()
            elif isinstance(layer, Block):
                _draw_block(layer, len(self.image.blocks if _inside(layer, self.image) else self.text.blocks))
        width = self.image.class_token.numel()
        nn.init.normal_(self.image.class_token, std=width**-0.5)
        nn.init.normal_(self.image.positions, std=width**-0.5)
        nn.init.normal_(self.image.patches.weight, std=self.image.patches.weight[0].numel() ** -0.5)
        nn.init.normal_(self.text.tokens, std=0.02)
        nn.init.normal_(self.text.positions, std=0.01)
        for tower in (self.image, self.text):
            nn.init.normal_(tower.project.weight, std=tower.project.in_features**-0.5)
        self.log_scale.fill_(math.log(START_SCALE))
        self.get_buffer("contrast").fill_(1.0)
        self.get_buffer("shift").zero_()


def fresh_dual(
    spec: DualNet,
    like: ImageShape,
    rng: torch.Generator,
    *,
    vocabulary: int,
    end: int,
    device: torch.device | str = "cpu",
) -> DualEncoder:
    """Return a dual encoder for images like `like`, drawn from the CPU generator `rng`.

    Args:
        spec: its sizes.
        like: has the channels and the size of images.
        rng: of the weights.
        vocabulary: number of tokens' ids.
        end: the id at which texts are read.
        device: where it is moved to.
    """
    with seeded(rng):
        made = spec.build(like.channels, like.size, vocabulary)
    made.end = end
    return made.to(device)


def _inside(block: Block, tower: _Towers) -> bool:
    return any(block is one for one in tower.blocks)


def _draw_block(block: Block, depth: int) -> None:
    for name, layer in block.named_children():
        if not isinstance(layer, nn.Linear):
            continue
        width = block.mix.in_features if name in ("mix", "project") else block.expand.in_features
        std = {"mix": 1.0, "expand": 2**-0.5}.get(name, (2 * depth) ** -0.5)
        nn.init.normal_(layer.weight, std=std * width**-0.5)
        nn.init.zeros_(layer.bias)

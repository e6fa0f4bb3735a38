"""Small denoisers: modules `net(x, label, condition)` through which forward-mode derivatives pass.

A condition is a tensor, or a mapping with `condition` and what `Extras` add: `guidance` (w, `[n]`) and `second` (the
label of the time a flow map jumps to, `[n]`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.diffusion.guidance import GuidanceEmbedding
from attar.diffusion.view import Condition
from attar.errors import RecipeError
from attar.nets.denoiser_specs import DiT, Extras, Form, PointMLP, ResidualMLP

FREQUENCIES = 16  # of the time features


def told(condition: Condition, *, guidance: Tensor | None = None, second: Tensor | None = None) -> Condition:
    """Return a condition with what `Extras` add; without any, the condition itself."""
    extra = {"guidance": guidance, "second": second}
    given = {name: value for name, value in extra.items() if value is not None}
    if not given:
        return condition
    own = dict(condition) if isinstance(condition, Mapping) else {} if condition is None else {"condition": condition}
    return {**own, **given}


def parted(condition: Condition) -> tuple[Any, Tensor | None, Tensor | None]:
    """Return a condition without what `Extras` add, the guidance scale, and the second time; none where not given."""
    if not isinstance(condition, Mapping):
        return condition, None, None
    rest = {name: value for name, value in condition.items() if name not in ("guidance", "second")}
    own: Any = rest["condition"] if rest.keys() == {"condition"} else rest or None
    return own, condition.get("guidance"), condition.get("second")


class ZeroLinear(nn.Linear):
    """A linear layer that begins at zero."""

    def reset_parameters(self) -> None:
        """Set everything to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class TimeFeatures(nn.Module):
    """A label `[n]` as itself and sin and cos at 16 angular frequencies from 1 to `highest`: `[n, 33]`."""

    size = 2 * FREQUENCIES + 1

    def __init__(self, highest: float) -> None:
        super().__init__()
        self.highest = highest

    def forward(self, label: Tensor) -> Tensor:
        """Return the features."""
        powers = torch.arange(FREQUENCIES, device=label.device, dtype=label.dtype) / (FREQUENCIES - 1)
        angles = label[:, None] * self.highest**powers
        return torch.cat([label[:, None], angles.sin(), angles.cos()], 1)


class DenoiserNetwork(nn.Module):
    """What denoisers share: the embedding `[n, width]` of time, condition and extras.

    Args:
        form: of the samples.
        width: of the embedding.
        frequency: highest angular frequency of the time features.
        extras: inputs beside, zero at first.
    """

    def __init__(self, form: Form, width: int, frequency: float, extras: Extras) -> None:
        super().__init__()
        self.labels, self.vector, self.extras = form.labels, form.width, extras
        self.features = TimeFeatures(frequency)
        self.time = nn.Sequential(nn.Linear(TimeFeatures.size, width), nn.SiLU(), nn.Linear(width, width))
        if form.labels:
            self.classes = nn.Linear(form.labels + 1, width, bias=False)  # of one-hot labels
        if form.width:
            self.vectors = nn.Sequential(nn.Linear(form.width, width), nn.SiLU(), nn.Linear(width, width))
        if extras.guidance:
            self.guidance = GuidanceEmbedding(width)
        if extras.second_time:
            self.second = nn.Sequential(nn.Linear(TimeFeatures.size, width), nn.SiLU(), ZeroLinear(width, width))

    def embed(self, label: Tensor, condition: Condition) -> Tensor:
        """Return the embedding `[n, width]` of labels `[n]` and conditions.

        Raises:
            RecipeError: a condition, a guidance scale or a second time that the network has no input for.
        """
        own, guidance, second = parted(condition)
        made: Tensor = self.time(self.features(label.to(next(self.time.parameters()).dtype)))
        made = made + self._conditioned(own, len(label), made)
        for name, value in (("guidance", guidance), ("second", second)):
            if value is None:
                continue
            if not hasattr(self, name):
                raise RecipeError(f"this network has no input '{name}'; it was built without it (extras)")
            rows = value.to(made).expand(len(label))
            made = made + (self.guidance(rows) if name == "guidance" else self.second(self.features(rows)))
        return made

    def _conditioned(self, condition: Any, n: int, like: Tensor) -> Tensor:
        if not self.labels and not self.vector:
            if condition is not None:
                raise RecipeError("this network was trained without conditions, and one was given")
            return torch.zeros_like(like)
        if condition is None:
            null = torch.full((n,), self.labels, device=like.device)
            condition = null if self.labels else like.new_zeros(n, self.vector)
        if not isinstance(condition, Tensor) or condition.is_floating_point() != bool(self.vector):
            what = f"vectors [n, {self.vector}]" if self.vector else f"labels [n] from 0 to {self.labels} (none)"
            raise RecipeError(f"this network is conditioned on {what}")
        if self.vector:
            made: Tensor = self.vectors(condition.to(like))
            return made
        one_hot: Tensor = functional.one_hot(condition.expand(n), self.labels + 1).to(like.dtype)
        embedded: Tensor = self.classes(one_hot)
        return embedded

    def forward(self, x: Tensor, label: Tensor, condition: Condition = None) -> Tensor:
        """Return the prediction `[n, *shape]` of x `[n, *shape]` at labels `[n]`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it predicts")


class PointNetwork(DenoiserNetwork):
    """See `PointMLP`."""

    def __init__(self, spec: PointMLP, form: Form, extras: Extras) -> None:
        super().__init__(form, spec.width, spec.frequency, extras)
        size = math.prod(form.shape)
        widths = [size + spec.width, *[spec.width] * spec.depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(spec.width, size)

    def forward(self, x: Tensor, label: Tensor, condition: Condition = None) -> Tensor:
        """Return the prediction `[n, *shape]`."""
        h = torch.cat([x.flatten(1), functional.silu(self.embed(label, condition))], 1)
        for layer in self.layers:
            h = functional.silu(layer(h))
        out: Tensor = self.out(h)
        return out.view_as(x)


class ResidualBlock(nn.Module):
    """h + W2 SiLU(W1 LayerNorm(h) + W3 e), with W2 zero at first."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Linear(width, width)
        self.embedded, self.outer = nn.Linear(width, width), ZeroLinear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Return `[n, width]`."""
        inner = functional.silu(self.inner(self.norm(h)) + self.embedded(e))
        out: Tensor = h + self.outer(self.dropout(inner))
        return out


class ResidualNetwork(DenoiserNetwork):
    """See `ResidualMLP`."""

    def __init__(self, spec: ResidualMLP, form: Form, extras: Extras) -> None:
        super().__init__(form, spec.width, spec.frequency, extras)
        size = math.prod(form.shape)
        self.inside = nn.Linear(size, spec.width)
        self.blocks = nn.ModuleList(ResidualBlock(spec.width, spec.dropout) for _ in range(spec.blocks))
        self.norm, self.out = nn.LayerNorm(spec.width), ZeroLinear(spec.width, size)

    def forward(self, x: Tensor, label: Tensor, condition: Condition = None) -> Tensor:
        """Return the prediction `[n, *shape]`."""
        e = functional.silu(self.embed(label, condition))
        h = self.inside(x.flatten(1))
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.out(self.norm(h))
        return out.view_as(x)


class Positions(nn.Module):
    """A learned vector for each place `[places, width]`."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(places, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table with a standard deviation of 0.02."""
        nn.init.normal_(self.table, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens `[n, places, width]` with their places added."""
        return tokens + self.table


class Attention(nn.Module):
    """Self-attention of tokens `[n, t, width]`, written out: fused kernels have no forward-mode derivative."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inside, self.outside = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return `[n, t, width]`."""
        q, k, v = self.inside(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        share = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        out: Tensor = self.outside((share @ v).transpose(1, 2).flatten(2))
        return out


class DiTBlock(nn.Module):
    """Attention and an MLP, each scaled, shifted and gated by the embedding; gates are zero at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = ZeroLinear(width, 6 * width)

    def forward(self, tokens: Tensor, e: Tensor) -> Tensor:
        """Return `[n, t, width]`."""
        parts = self.modulation(e)[:, None].chunk(6, -1)
        for layer, (shift, scale, gate) in zip((self.attention, self.mlp), (parts[:3], parts[3:]), strict=True):
            tokens = tokens + gate * layer(plain_norm(tokens) * (1 + scale) + shift)
        return tokens


def plain_norm(tokens: Tensor) -> Tensor:
    """Return the tokens with mean 0 and variance 1 over their channels."""
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)


class DiTNetwork(DenoiserNetwork):
    """See `DiT`."""

    def __init__(self, spec: DiT, form: Form, extras: Extras) -> None:
        super().__init__(form, spec.width, spec.frequency, extras)
        channels, height, width = form.shape
        self.patch, self.grid = spec.patch, (height // spec.patch, width // spec.patch)
        self.inside = nn.Conv2d(channels, spec.width, spec.patch, spec.patch)
        self.positions = Positions(self.grid[0] * self.grid[1], spec.width)
        self.blocks = nn.ModuleList(DiTBlock(spec.width, spec.heads) for _ in range(spec.depth))
        self.modulation = ZeroLinear(spec.width, 2 * spec.width)
        self.out = ZeroLinear(spec.width, channels * spec.patch**2)

    def forward(self, x: Tensor, label: Tensor, condition: Condition = None) -> Tensor:
        """Return the prediction `[n, C, H, W]`."""
        e = functional.silu(self.embed(label, condition))
        tokens = self.positions(self.inside(x).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, e)
        shift, scale = self.modulation(e)[:, None].chunk(2, -1)
        pixels = self.out(plain_norm(tokens) * (1 + scale) + shift)
        maps = pixels.view(len(x), *self.grid, -1, self.patch, self.patch)
        out: Tensor = maps.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
        return out

"""Adapters beside the layers of a frozen network that are told guidance, time and condition (arXiv 2503.07274)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attar.diffusion.view import Condition
from attar.errors import RecipeError
from attar.nets.adapter_specs import GuidanceAdapters
from attar.nets.adapters import Adapted, is_attention, tensors_of
from attar.nets.denoiser_specs import Extras, Form
from attar.nets.denoisers import Attention, DenoiserNetwork, PointNetwork, ResidualNetwork, ZeroLinear, parted, told
from attar.nets.initialise import reset

FREQUENCY = 16.0  # highest of the time features, of labels scaled to 1


@dataclasses.dataclass(eq=False)
class Context:
    """What all adapters of a network are told of the batch that passes through it."""

    on: bool = True
    guidance: Tensor | None = None  # w, `[n]`
    label: Tensor | None = None  # `[n]`, scaled to 1
    condition: Any = None


class GuidanceFeatures(nn.Module):
    """LayerNorm(MLP(cos 2π(f κ w + φ))) of guidance w `[n]`, f normal and φ even, both drawn once: `[n, width]`."""

    covers_submodules = True  # `reset_parameters` speaks for the layers inside
    f: Tensor
    phase: Tensor

    def __init__(self, width: int, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency
        self.register_buffer("f", torch.empty(width))
        self.register_buffer("phase", torch.empty(width))
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width)
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Draw frequencies, phases and layers."""
        nn.init.normal_(self.f)
        nn.init.uniform_(self.phase)
        for layer in self.layers:
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                layer.reset_parameters()

    def forward(self, w: Tensor) -> Tensor:
        """Return the features."""
        turns = w[:, None].to(self.f) * self.frequency * self.f + self.phase
        out: Tensor = self.layers(torch.cos(2 * math.pi * turns))
        return out


class OffsetAdapter(DenoiserNetwork):
    """MLP(s(w) + time + condition), one vector for all tokens; the last layer is zero at first.

    Args:
        spec: of the adapter.
        form: of the conditions.
        width: channels of the layer that it stands beside.
    """

    def __init__(self, spec: GuidanceAdapters, form: Form, width: int) -> None:
        super().__init__(form, spec.hidden, FREQUENCY, Extras())
        self.strength = GuidanceFeatures(spec.hidden, spec.frequency)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(spec.hidden, spec.hidden), nn.SiLU())
        self.out = ZeroLinear(spec.hidden, width)

    def beside(self, tokens: Tensor, context: Context) -> Tensor:
        """Return what is added to the layer's output: `[n, 1, width]`."""
        assert context.guidance is not None
        assert context.label is not None
        told_of = self.strength(context.guidance) + self.embed(context.label, context.condition)
        added: Tensor = self.out(self.layers(told_of))
        return added[:, None]


class AttentionAdapter(DenoiserNetwork):
    """Attention of one head from the layer's tokens to s(w), time and condition; the last layer is zero at first."""

    def __init__(self, spec: GuidanceAdapters, form: Form, width: int) -> None:
        super().__init__(form, spec.hidden, FREQUENCY, Extras())
        self.strength = GuidanceFeatures(spec.hidden, spec.frequency)
        self.asks, self.keys = nn.Linear(width, spec.hidden), nn.Linear(spec.hidden, 2 * spec.hidden)
        self.out = ZeroLinear(spec.hidden, width)

    def beside(self, tokens: Tensor, context: Context) -> Tensor:
        """Return what is added to the layer's output `[n, t, width]`."""
        assert context.guidance is not None
        assert context.label is not None
        time = self.time(self.features(context.label.to(tokens)))
        known = self._conditioned(context.condition, len(time), time)
        sequence = torch.stack([self.strength(context.guidance), time, known], 1) + positions(3, time)
        keys, values = self.keys(sequence).chunk(2, -1)
        share = torch.softmax(self.asks(tokens) @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1]), -1)
        added: Tensor = self.out(share @ values)
        return added


class Beside(nn.Module):
    """A layer with an adapter beside it: f(x) + A(x; w, t, c)."""

    def __init__(self, inner: nn.Module, adapter: OffsetAdapter | AttentionAdapter, context: Context) -> None:
        super().__init__()
        self.inner, self.adapter, self.context = inner, adapter, context

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Any:
        """Return the layer's output, of tokens `[n, t, width]`, maps `[n, width, H, W]` or vectors `[n, width]`."""
        out = self.inner(x, *args, **named)
        if not self.context.on:
            return out
        first = out[0] if isinstance(out, tuple) else out
        flat = first.reshape(*first.shape[:2], -1).transpose(1, 2) if first.dim() == 4 else first
        tokens = flat[:, None] if flat.dim() == 2 else flat
        added = self.adapter.beside(tokens, self.context).expand_as(tokens)
        added = (added.transpose(1, 2) if first.dim() == 4 else added).reshape(first.shape)
        return (first + added, *out[1:]) if isinstance(out, tuple) else first + added


class GuidanceAdapted(Adapted):
    """A network with adapters that read guidance: called with a condition that tells `guidance`, w `[n]`."""

    def __init__(
        self, network: nn.Module, frozen: dict[str, Tensor], fresh: frozenset[str], context: Context, longest: float
    ) -> None:
        super().__init__(network, frozen, fresh)
        self.context, self.longest = context, longest

    def switch(self) -> None:
        """Turn all adapters on or off."""
        self.context.on = self.on

    def forward(self, x: Tensor, label: Tensor, condition: Condition = None) -> Tensor:
        """Return the prediction `[n, *shape]`.

        Raises:
            RecipeError: the adapters are on, and no guidance is told.
        """
        own, guidance, second = parted(condition)
        context = self.context
        if self.on:
            if guidance is None:
                raise RecipeError("these adapters are told guidance: give the condition as told(condition, guidance=w)")
            context.guidance, context.label = guidance.expand(len(x)), label / self.longest
            context.condition = own
        out: Tensor = self.network(x, label, told(own, second=second))
        context.guidance = context.label = context.condition = None
        return out


def with_guidance_adapters(
    network: nn.Module,
    spec: GuidanceAdapters,
    form: Form,
    rng: torch.Generator,
    *,
    longest: float = 1.0,
    fresh: frozenset[str] = frozenset(),
) -> GuidanceAdapted:
    """Return the network, changed in place, with an adapter beside each attention or hidden layer.

    Args:
        network: a denoiser.
        spec: of the adapters.
        form: of the conditions.
        rng: CPU generator of the adapters' weights.
        longest: the largest label that the network is told.
        fresh: names of parameters of the network that are trained as well.

    Raises:
        RecipeError: a network with neither attention nor hidden layers.
    """
    frozen = {name: tensor for name, tensor in tensors_of(network).items() if name not in fresh}
    context = Context()
    made = OffsetAdapter if spec.form == "offset" else AttentionAdapter
    for name, width in list(places(network)):
        adapter = made(spec, form, width)
        reset(adapter, rng)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, Beside(network.get_submodule(name), adapter, context))
    return GuidanceAdapted(network, frozen, fresh, context, longest)


def places(network: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the name and the channels of each layer that an adapter stands beside.

    Raises:
        RecipeError: there is none.
    """
    attention = [(name, layer) for name, layer in network.named_modules() if is_attention(layer)]
    for name, layer in attention:
        last: Any = layer.outside if isinstance(layer, Attention) else network.get_submodule(f"{name}.to_out.0")
        yield name, last.out_features
    if attention:
        return
    layers: Any = None
    if isinstance(network, PointNetwork):
        layers = [(f"layers.{number}", layer.out_features) for number, layer in enumerate(network.layers)]
    elif isinstance(network, ResidualNetwork):
        blocks: Any = network.blocks
        layers = [(f"blocks.{number}", layer.inner.in_features) for number, layer in enumerate(blocks)]
    if layers is None:
        raise RecipeError(f"{type(network).__name__} has no attention that adapters could stand beside")
    yield from layers


def positions(count: int, like: Tensor) -> Tensor:
    """Return sinusoidal positions `[count, width]` for a sequence of vectors as wide as `like` `[n, width]`."""
    width = like.shape[1]
    powers = torch.arange(width, device=like.device) // 2 * 2 / width
    angles = torch.arange(count, device=like.device)[:, None] / 10000**powers
    even = torch.arange(width, device=like.device) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).to(like.dtype)

"""Frozen networks with adapters inside that can be switched off, and low-rank updates of their layers by peft."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from attar.diffusion.view import Condition
from attar.errors import AttarError, RecipeError
from attar.nets.adapter_specs import LoRA
from attar.nets.denoisers import Attention, parted
from attar.nets.initialise import seeded

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

NAME = "default"  # of the adapter, as peft names it


class Adapted(nn.Module):
    """A frozen denoiser with adapters in it. Its state is theirs alone; copies share what is frozen.

    Args:
        network: a denoiser `network(x, label, condition)` that holds adapters already.
        frozen: the tensors of the network that are not trained.
        fresh: names of layers' parameters, inputs of the network that the frozen one has not.
    """

    def __init__(self, network: nn.Module, frozen: Mapping[str, Tensor], fresh: frozenset[str]) -> None:
        super().__init__()
        self.network = network
        kept = {id(tensor) for tensor in frozen.values()}
        tensors = [*self.named_parameters(), *self.named_buffers()]
        self.frozen = frozenset(name for name, tensor in tensors if id(tensor) in kept)
        self.fresh = fresh
        self.on = True
        self.requires_grad_(True)
        self.register_state_dict_post_hook(_without_frozen)
        self.register_load_state_dict_post_hook(_no_frozen_missing)

    def forward(self, x: Tensor, label: Tensor, condition: Condition = None) -> Tensor:
        """Return the prediction `[n, *shape]`; switched off, it is told only what the frozen network has inputs for."""
        given = condition if self.on or not self.fresh else parted(condition)[0]
        out: Tensor = self.network(x, label, given)
        return out

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Ask for gradients of the adapters, or for none; what is frozen stays so."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(requires_grad and name not in self.frozen)
        return self

    def switch(self) -> None:
        """Turn all adapters on or off, as `on` says."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is switched off")

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Be the frozen network, bit for bit, inside the block."""
        self.on = False
        self.switch()
        try:
            yield
        finally:
            self.on = True
            self.switch()

    def merged(self) -> nn.Module:
        """Return the network with the adapters' work in its own weights, in memory of its own.

        Raises:
            RecipeError: adapters that no weights can stand for.
        """
        raise RecipeError("these adapters read guidance and time, which no weights can stand for; keep them")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo |= {id(tensor): tensor for name, tensor in self._tensors() if name in self.frozen}
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.named_parameters()
        yield from self.named_buffers()


class LowRank(Adapted):
    """A network whose layers have low-rank updates."""

    def switch(self) -> None:
        """Turn all updates on or off."""
        for _, layer in tuned(self.network):
            layer.enable_adapters(self.on)

    def merged(self) -> nn.Module:
        """Return the network with W + (α / r) B A for each W."""
        plain = copy.deepcopy(self.network)
        for name, layer in tuned(plain):
            layer.merge(adapter_names=[NAME])
            parent, _, own = name.rpartition(".")
            setattr(plain.get_submodule(parent), own, layer.get_base_layer())
        del plain.peft_config  # or peft would take it for a network with updates
        return plain


def with_low_rank(network: nn.Module, spec: LoRA, rng: torch.Generator, *, fresh: frozenset[str]) -> LowRank:
    """Return the network, changed in place, with updates in the layers that the spec asks for; A is drawn from `rng`.

    Raises:
        AttarError: peft is not installed.
        RecipeError: there is no such layer.
    """
    try:
        import peft
    except ImportError:
        raise AttarError(
            "low-rank adapters are made by peft, which is not installed: pip install 'attar[hf]'"
        ) from None
    frozen = {name: t for name, t in tensors_of(network).items() if name not in fresh}
    names = layers_of(network, spec.layers, fresh)
    config = peft.LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha or spec.rank, target_modules="|".join(map(re.escape, names)), bias="none"
    )
    with seeded(rng):
        peft.inject_adapter_in_model(config, network, adapter_name=NAME)
    return LowRank(network, frozen, fresh)


def layers_of(network: nn.Module, which: str, fresh: frozenset[str] = frozenset()) -> list[str]:
    """Return the names of the layers that low-rank updates go to: linear ones in attention, or all there are.

    Raises:
        RecipeError: there are none.
    """
    inside = [f"{name}." for name, layer in network.named_modules() if is_attention(layer)]
    kinds = (nn.Linear,) if which == "attention" else (nn.Linear, nn.Conv2d)
    names = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, kinds)
        and f"{name}.weight" not in fresh
        and (which == "all" or any(name.startswith(one) for one in inside))
    ]
    if not names:
        raise RecipeError(f"{type(network).__name__} has no attention for low-rank updates; take lora.layers=all")
    return names


def is_attention(layer: nn.Module) -> bool:
    """Say whether a layer is attention: ours, or one of diffusers."""
    return isinstance(layer, Attention) or hasattr(layer, "to_q")


def tuned(network: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """Return the layers that peft has put into a network, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _without_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(module, Adapted)
    for name in module.frozen:
        state.pop(prefix + name, None)


def _no_frozen_missing(module: nn.Module, keys: Any) -> None:
    assert isinstance(module, Adapted)
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in module.frozen]

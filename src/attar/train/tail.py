"""The end of a network, cut off from the rest: what its last blocks make of a map that another network gives."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.nets import Network
from attar.train.taps import place

_SHARE = 12  # of so many blocks the last is a tail: 2 of BEiT-L's 24 (arXiv 2411.06786), 1 of a Swin's 4 stages
_ROUNDING = 0.03  # share of the largest number by which bfloat16 may differ where samples are fewer


class Tail:
    """A network from one of its blocks on, as a function of what that block reads; pooling and head are left out.

    The network is watched once, so that networks of any library can be cut if their blocks follow one another: each is
    called again with what it was given beside the map (sizes, positions), and so is the layer norm behind the last one,
    where there is one. Where the blocks read tokens, they are given those of the places alone. Nothing is copied:
    parameters are the network's own, and gradients pass to the map.

    Args:
        network: frozen, in evaluation mode.
        start: the first block, see `cut`.
        images: two images or more.

    Attributes:
        entry: shape `[channels, height, width]` of the map that the tail reads.
        exit: shape of the map that it gives.

    Raises:
        RecipeError: there is no such block, the blocks read no maps, or called again they give something else.
    """

    def __init__(self, network: nn.Module, start: str, images: Tensor) -> None:
        blocks, first, _ = cut(network, start)
        self._network, self._of_stages = network, blocks is getattr(network, "stages", None)
        self._blocks = list(blocks)[first:]
        pools = getattr(network, "pools", None) if self._of_stages else None
        self._pools = [None] * len(self._blocks) if pools is None else list(pools)[first:]
        self._norm: nn.Module | None = None
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        given, made, behind = self._watch(images)
        self._reads_tokens, self._norm_of_tokens = given.dim() == 3, made.dim() == 3
        self.entry, self.exit = self._map(given).shape[1:], self._map(made).shape[1:]
        self._try(given, behind)

    def __call__(self, maps: Tensor) -> Tensor:
        """Return the last map `[n, *exit]` of maps `[n, *entry]`."""
        return self.finish(self._replay(_tokens(maps) if self._reads_tokens else maps))

    def finish(self, given: Tensor) -> Tensor:
        """Return what the last block gave, as it gave it or as a map, as the map `[n, *exit]` behind the last norm."""
        maps = self._map(given)
        if self._norm is None:
            return maps
        made: Tensor = self._norm(_tokens(maps) if self._norm_of_tokens else maps)
        return made.transpose(1, 2).unflatten(2, self.exit[1:]) if self._norm_of_tokens else made

    def _map(self, given: Tensor) -> Tensor:
        """Return maps as they are, and tokens as maps without those ahead of the places."""
        if given.dim() == 4:
            return given
        if given.dim() != 3:
            raise RecipeError(
                f"a tail reads and gives maps or tokens, and {self._name} has {list(given.shape[1:])} there"
            )
        count = given.shape[1]
        side = math.isqrt(count)
        if side * side != count and self._of_stages and isinstance(self._network, Network):
            return self._network.map_of(given)
        return given[:, count - side * side :].transpose(1, 2).unflatten(2, (side, side))

    def _replay(self, x: Tensor) -> Tensor:
        """Call the blocks again, one on what another gave."""
        last = len(self._blocks) - 1
        for number, (block, pool, (others, named)) in enumerate(
            zip(self._blocks, self._pools, self._calls, strict=True)
        ):
            x = _first(block(x, *others, **named))
            x = x if pool is None or number == last else pool(x)
        return x

    @torch.no_grad()
    def _watch(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the first block reads, what the last gives, and the same behind the norm; keep the calls."""
        given: list[Tensor] = []
        made: dict[int, Tensor] = {}
        last = len(self._blocks) - 1
        behind: list[Tensor] = []

        def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not args or not isinstance(args[0], Tensor):
                raise RecipeError(
                    f"the blocks of {self._name} are not given their map first, so its tail cannot be run"
                )
            given.append(args[0])
            self._calls.append((args[1:], named))

        def after(number: int, _: nn.Module, __: Any, output: Any) -> None:
            made[number] = _first(output)

        def norm(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._norm is None and args and args[0] is made.get(last):
                self._norm = layer
                behind.append(output)

        handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in self._blocks]
        handles += [block.register_forward_hook(partial(after, number)) for number, block in enumerate(self._blocks)]
        handles += [layer.register_forward_hook(norm) for layer in self._network.modules() if _normalises(layer)]
        training = self._network.training
        try:
            self._network.eval()(images)
        finally:
            self._network.train(training)
            for handle in handles:
                handle.remove()
        if len(given) != len(self._blocks):
            raise RecipeError(f"one forward of {self._name} does not pass every block of its tail once; name another")
        return given[0], made[last], behind[0] if behind else made[last]

    @torch.no_grad()
    def _try(self, given: Tensor, wanted: Tensor) -> None:
        """Say so now if the blocks cannot be called again: on other numbers of samples, or on places alone."""
        try:
            again = self._replay(given[:1])
            again = again if self._norm is None else self._norm(again)
            self(self._map(given)[:1])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise RecipeError(
                f"the last blocks of {self._name} cannot be called by themselves, on places alone: "
                f"{str(error).splitlines()[0]}. Name a later one"
            ) from None
        alike = again.shape == wanted[:1].shape
        if not alike or (again - wanted[:1]).abs().max() > _ROUNDING * wanted.abs().max():
            raise RecipeError(f"the last blocks of {self._name} do not simply follow one another; name a later one")

    @property
    def _name(self) -> str:
        return type(self._network).__name__


def cut(network: nn.Module, start: str) -> tuple[nn.ModuleList | nn.Sequential, int, str]:
    """Return the list of blocks that a tail belongs to, the number of its first, and the place of the last (`read`).

    `start` is `stage:K`, or the path of a module in a list such as `vit.layers.10`; an empty one stands for the last of
    a network's `stages`, or the last twelfth where there are 24 and more.

    Raises:
        RecipeError: there is no such block, or it stands in no list.
    """
    stages: Any = getattr(network, "stages", ())
    name = type(network).__name__
    if not start:
        if not len(stages):
            raise RecipeError(
                f"{name} has no stages; name the block from which its tail goes on by its path, such as vit.layers.10"
            )
        return stages, len(stages) - max(1, len(stages) // _SHARE), "stage:-1"
    block, ingoing = place(network, start)
    if start.startswith("stage:"):
        return stages, int(start.removeprefix("stage:")) % len(stages), "stage:-1"
    parent = start.rpartition(".")[0]
    siblings = network.get_submodule(parent)
    if ingoing or not isinstance(siblings, nn.ModuleList | nn.Sequential):
        raise RecipeError(f"'{start}' of {name} is no block in a list of blocks; name one, such as layers.10")
    last = "stage:-1" if siblings is stages else f"{parent}.{list(siblings._modules)[-1]}"
    return siblings, list(siblings).index(block), last


def _first(output: Any) -> Tensor:
    """Return what a block gives to the next: its output, or the first of several."""
    made: Tensor = output if isinstance(output, Tensor) else output[0]
    return made


def _normalises(layer: nn.Module) -> bool:
    """Return whether a layer normalises every place by itself, in torch or in transformers."""
    return isinstance(layer, nn.LayerNorm) or type(layer).__name__.endswith(("LayerNorm", "RMSNorm"))


def _tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)

"""The top of a network: its last stages and all behind them, as a function of what the first of them reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.nets.transformers_network import blocks_of
from attar.train.taps import EMBEDDING, read

_ROUNDING = 0.03  # share of the largest number by which bfloat16 may differ where samples are fewer
_INSTEAD = "top=0 takes messages to what the last linear layer reads"


class Top:
    """What a network's last stages, its pooling and all else before its last linear layer make of an input of theirs.

    One of Attar's networks is gone through from there. Any other, such as a model of transformers, runs its own forward
    on a blank, and what the first of these stages reads is exchanged: it may hand its stages what it likes beside it,
    and get from them what it likes. Nothing is copied: parameters are the network's own, and gradients pass.

    Args:
        network: student or teacher.
        stages: how many of the last of its `stages`, or else of its first list of blocks; with 0 nothing is left.
        two: two images.

    Attributes:
        entry: shape of what the first of the stages reads of a sample.

    Raises:
        RecipeError: there are no such stages, they cannot be given anything else than they are, or the last linear
            layer reads no vector.
    """

    def __init__(self, network: nn.Module, stages: int, two: Tensor) -> None:
        self._network, self._blank = network, torch.zeros_like(two)
        self._stages = _last(network, stages) if stages else []
        training = network.training
        try:
            self.entry = self._watch(network.eval(), two)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise RecipeError(
                f"the last blocks of {type(network).__name__} cannot go on from a message: "
                f"{str(error).splitlines()[0]}. {_INSTEAD}"
            ) from None
        finally:
            network.train(training)

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the last linear layer reads `[n, features]`, for an input `[n, *entry]`."""
        if not self._stages:
            return x
        network: Any = self._network
        with undisturbed(network):
            if not hasattr(network, "pools"):
                return self._exchanged(x)
            for stage, pool in zip(self._stages, network.pools[-len(self._stages) :], strict=True):
                x = pool(stage(x))
            state: Tensor = network.collapse(x)
        return state

    def _exchanged(self, x: Tensor) -> Tensor:
        """Return the state that the network's own forward comes to from `x` on."""
        handle = self._stages[0].register_forward_pre_hook(lambda _, given: (x, *given[1:]))
        try:
            return read(self._network, self._blank, [EMBEDDING])[1][EMBEDDING]
        finally:
            handle.remove()

    @torch.no_grad()
    def _watch(self, network: nn.Module, two: Tensor) -> torch.Size:
        """Return the shape that is read, once the stages have been seen to give the same again of one sample."""
        first = self._stages[0] if self._stages else None
        path = next((f"{name}:input" for name, layer in network.named_modules() if layer is first), EMBEDDING)
        _, found = read(network, two, [path, EMBEDDING])
        state = found[EMBEDDING]
        if state.dim() != 2:
            raise RecipeError(
                f"the last linear layer of {type(network).__name__} reads {list(state.shape[1:])} numbers of a sample, "
                "and messages are about a vector; take a network that pools before it"
            )
        again = self(found[path][:1])
        if again.shape != state[:1].shape or (again - state[:1]).abs().max() > _ROUNDING * state.abs().max():
            raise ValueError("called again they give something else")
        return found[path].shape[1:]


def _last(network: nn.Module, count: int) -> list[nn.Module]:
    """Return the last stages or blocks of a network."""
    stages: Any = getattr(network, "stages", None)
    try:
        stages = blocks_of(network) if stages is None else stages
    except RecipeError as error:
        raise RecipeError(f"{error}; {_INSTEAD}") from None
    if count > len(stages):
        raise RecipeError(f"{type(network).__name__} has {len(stages)} stages, and top={count} go on from a message")
    return list(stages)[-count:]


@contextlib.contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms: the network that remains alone never hears a message."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum

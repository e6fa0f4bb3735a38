"""Building networks and drawing their weights from a generator, without touching torch's global one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from attar.errors import RecipeError
from attar.nets.known import Net
from attar.nets.network import Network

M = TypeVar("M", bound=nn.Module)

_GLOBAL = threading.RLock()  # torch's global generator is one for all threads, and evaluation makes networks in several


class ImageShape(Protocol):
    """What a network must know of the data it reads: `Images` and everything shaped like them."""

    @property
    def channels(self) -> int:
        """Colour channels."""

    @property
    def size(self) -> int:
        """Side of the square images, in pixels."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""


class Shape(NamedTuple):
    """An `ImageShape` without images."""

    channels: int
    size: int
    num_classes: int


def fresh(spec: Net, like: ImageShape, rng: torch.Generator, *, device: torch.device | str | None = None) -> Network:
    """Build a network for data like `like` with PyTorch's default initialisation drawn from the CPU generator `rng`.

    The weights equal those of `reset(module, rng)`, on every device. Where a method needs a new network in every step,
    build once and `reset`: that is faster and keeps a compiled module alive.

    Raises:
        AttarError: the images are too small for the network.
    """
    with seeded(torch.Generator()):  # building draws weights too; they are thrown away
        module = spec.build(like.channels, like.size, like.num_classes)
    reset(module, rng)
    return module if device is None else module.to(device)


def reset(module: nn.Module, rng: torch.Generator) -> None:
    """Draw every parameter and buffer again, in place: same generator state, same bytes, on every device.

    Uses each layer's own `reset_parameters`, which speaks for all inside where a layer `covers_submodules`. Parameters
    keep their storage, so compiled modules, optimizers and views stay valid. `rng` advances by one draw; torch's global
    generator is left as it was.

    Raises:
        RecipeError: a layer holds parameters or buffers but cannot initialise them.
    """
    covered: set[nn.Module] = set()
    with seeded(rng):
        for name, layer in module.named_modules():
            if getattr(layer, "covers_submodules", False):
                layer.reset_parameters()
                covered |= set(layer.modules())
            if layer in covered or (not layer._parameters and not layer._buffers):
                continue
            if not hasattr(layer, "reset_parameters"):
                raise RecipeError(
                    f"cannot re-initialise '{name or type(layer).__name__}': {type(layer).__name__} holds parameters "
                    "but has no reset_parameters(); give it one"
                )
            tensors = [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]
            if all(t.device.type == "cpu" for t in tensors):
                layer.reset_parameters()
            else:
                _reset_on_cpu(layer)


def freeze(module: M) -> M:
    """Ask for no gradient of any parameter of `module`, and return it."""
    return module.requires_grad_(False)


def count_parameters(module: nn.Module) -> int:
    """Return the number of scalars in the parameters of `module`, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def batch_statistics(module: nn.Module) -> bool:
    """Say whether a sample's output depends on its batch: some layer of `module` is a batch norm."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


@contextlib.contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Let torch's global CPU generator start from one draw of `rng`, and put its state back afterwards."""
    # torch.random.fork_rng and torch.manual_seed also visit every accelerator, which costs more than the draws.
    seed = int(torch.randint(2**63 - 1, (), generator=rng))
    with _GLOBAL:
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.default_generator.set_state(state)


def _reset_on_cpu(layer: nn.Module) -> None:
    """Initialise twins of the layer's tensors on the CPU and copy them over, so that devices agree to the byte."""
    parameters = {name: p for name, p in layer._parameters.items() if p is not None}
    buffers = {name: b for name, b in layer._buffers.items() if b is not None}
    try:
        for name, parameter in parameters.items():
            layer._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=False)
        for name, buffer in buffers.items():
            layer._buffers[name] = torch.empty_like(buffer, device="cpu")
        layer.reset_parameters()  # type: ignore[operator]
        drawn = {name: getattr(layer, name) for name in (*parameters, *buffers)}
    finally:
        layer._parameters.update(parameters)
        layer._buffers.update(buffers)
    with torch.no_grad():
        for name, tensor in (parameters | buffers).items():
            tensor.copy_(drawn[name])

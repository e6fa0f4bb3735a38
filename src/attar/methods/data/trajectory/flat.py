"""A network as a function of one flat parameter vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attar import nets
from attar.nets import Net
from attar.nets.initialise import ImageShape
from attar.nets.twice import twice_differentiable


class FlatNetwork:
    """A network whose parameters are handed in as one vector `[P]`, in the order of `module.parameters()`.

    A batch norm uses the statistics of its batch, in the expert as in the student, and keeps none.

    Args:
        net: spec of the network.
        like: the data it reads: channels, size, classes.
        device: where it works.
    """

    def __init__(self, net: Net, like: ImageShape, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        made = nets.fresh(net, like, torch.Generator(), device=device).train().requires_grad_(False)
        self.module = twice_differentiable(made)
        for layer in self.module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        named = list(self.module.named_parameters())
        self.names = [name for name, _ in named]
        self.shapes = [parameter.shape for _, parameter in named]
        self.sizes = [parameter.numel() for _, parameter in named]

    @property
    def count(self) -> int:
        """P, the number of parameters."""
        return sum(self.sizes)

    def __call__(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Return logits `[n, classes]` of images `[n, C, H, W]` under `parameters` `[P]`."""
        parts = zip(self.names, self.shapes, parameters.split(self.sizes), strict=True)
        logits: Tensor = functional_call(self.module, {name: part.view(shape) for name, shape, part in parts}, images)
        return logits

    def fresh(self, rng: torch.Generator) -> Tensor:
        """Return newly drawn parameters `[P]`, by each layer's own initialisation."""
        nets.reset(self.module, rng)
        return torch.cat([parameter.reshape(-1) for parameter in self.module.parameters()]).clone()

    def slices(self, kind: type[nn.Module]) -> list[slice]:
        """Return where the weights of the layers of `kind` lie in the vector."""
        wanted = {f"{name}.weight" for name, layer in self.module.named_modules() if isinstance(layer, kind)}
        found, start = [], 0
        for name, size in zip(self.names, self.sizes, strict=True):
            if name in wanted:
                found.append(slice(start, start + size))
            start += size
        return found

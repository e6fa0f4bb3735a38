"""Batch norms whose batch lies in several processes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attar.run.processes import Processes


@contextlib.contextmanager
def synchronised(module: nn.Module, processes: Processes) -> Iterator[None]:
    """Let every batch norm in training see the rows of all processes while inside: their mean, variance and number.

    Outputs, gradients and running statistics are those of one process with the whole batch, up to the order of sums.
    Every process must have rows, and send them through the same layers. (`nn.SyncBatchNorm` works on GPUs alone.)
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer, processes)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: _BatchNorm, processes: Processes, x: Tensor) -> Tensor:
    """Do what a batch norm does with x `[n, C, …]`: (x − m) / √(v + ε) · γ + β, with m and v of all rows."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    wide = x.float()
    count = int(processes.sum(torch.tensor(wide.numel() // wide.shape[1])))

    def mean_of(values: Tensor) -> Tensor:
        mine = values.sum([0, *range(2, x.dim())])
        return processes.gather(mine[None]).sum(0) / count

    mean = mean_of(wide)
    centred = wide - mean.view(shape)
    variance = mean_of(centred.square())  # in a second pass: E[x²] − m² would lose the digits of a small variance
    _remember(layer, mean.detach(), variance.detach() * (count / max(1, count - 1)))
    out = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        out = out * layer.weight.view(shape) + layer.bias.view(shape)
    return out.to(x.dtype)


def _remember(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked.add_(1)
    share = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean, share)
    layer.running_var.lerp_(variance, share)

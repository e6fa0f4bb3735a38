"""Training on targets instead of classes: the squared error of a network's outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from attar.train.training import TensorSource


def regression_loss(module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over all entries of (module(images) − targets)², for targets `[n, d]`."""
    return functional.mse_loss(module(images), targets)


class TargetSource(TensorSource):
    """Images in the space networks see, with targets `[N, d]` in the place of labels: for `regression_loss`."""


@dataclass(frozen=True)
class Shape:
    """What a network must know of its inputs and outputs, where there are no `Images` of that shape."""

    channels: int
    size: int
    num_classes: int  # outputs

"""The kernels KIP can take, as specs, and how well ridge regression with a kernel predicts classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attar.artifacts.targeted import TargetedSet
from attar.data import Images
from attar.losses.kernels import convolutional_ntk, fully_connected_ntk
from attar.losses.ridge import kernel_ridge
from attar.metrics import accuracy
from attar.spec import kinds, spec

KernelOf = Callable[[Tensor, Tensor], Tensor]  # images [m, C, S, S], [n, C, S, S] -> kernel [m, n]


@spec
class FullyConnected:
    """The tangent kernel of an infinitely wide fully connected ReLU network (arXiv 2011.00050)."""

    kind: Literal["fully-connected"] = "fully-connected"
    depth: int = Field(3, ge=1)  # hidden layers
    weight_variance: float = Field(2.0, gt=0)
    bias_variance: float = Field(0.01, ge=0)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the kernel `[m, n]` of images `[m, C, S, S]` and `[n, C, S, S]`, in float64."""
        variances = {"weight_variance": self.weight_variance, "bias_variance": self.bias_variance}
        return fully_connected_ntk(a, b, depth=self.depth, **variances)


@spec
class Convolutional:
    """The tangent kernel of an infinitely wide ConvNet with average pooling (arXiv 2107.13034); very dear.

    A pair of images takes some ten times S⁴ numbers of 8 bytes: 3 MB at 14 pixels, 80 MB at 32. So pairs are computed
    `chunk` at a time, and anew in the backward pass.
    """

    kind: Literal["convolutional"] = "convolutional"
    depth: int = Field(3, ge=1)  # blocks
    weight_variance: float = Field(2.0, gt=0)
    bias_variance: float = Field(0.01, ge=0)
    chunk: int = Field(64, ge=1)  # pairs of images at a time

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the kernel `[m, n]` of images `[m, C, S, S]` and `[n, C, S, S]`, in float64."""

        def part(rows: Tensor, columns: Tensor) -> Tensor:
            variances = {"weight_variance": self.weight_variance, "bias_variance": self.bias_variance}
            return convolutional_ntk(rows, columns, depth=self.depth, **variances)

        across = min(len(b), self.chunk)
        rows = max(1, self.chunk // across)
        return torch.cat(
            [
                torch.cat([checkpoint(part, x, y, use_reentrant=False) for y in b.split(across)], 1)
                for x in a.split(rows)
            ]
        )


Kernel = kinds(FullyConnected | Convolutional)


@torch.no_grad()
def ridge_accuracy(
    kernel: KernelOf, made: TargetedSet, data: Images, *, regularisation: float = 1e-6, chunk: int = 512
) -> float:
    """Return the share of `data` whose class ridge regression on a set's images and targets predicts.

    The ridge is `regularisation` times the mean of the kernel's diagonal. For a network, `kernel` is the inner products
    of its features: `lambda a, b: feature_kernel(embed(a), embed(b))`.
    """
    support = kernel(made.images, made.images)
    ridge = regularisation * support.diagonal().mean()
    told = [
        kernel_ridge(support, kernel(data.normalised(part), made.images), made.targets, ridge)
        for part in torch.arange(len(data)).split(chunk)
    ]
    return accuracy(torch.cat(told), data.labels)

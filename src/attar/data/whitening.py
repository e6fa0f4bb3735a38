"""Regularised ZCA whitening of images, as the trajectory-matching line of papers uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attar.errors import DataError

LARGEST = 12_288  # values an image (64 x 64 x 3): the covariance is 1.2 GB in float64 there
CHUNK = 4096  # images that are float64 at a time
Flat = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class ZCA:
    """An invertible linear map that decorrelates pixels and stays as near to the pixels as can be.

    `transform(x) = W (x - mean)` with `W = U (Λ + eps I)^(-1/2) Uᵀ`, where `U Λ Uᵀ` is the covariance of raw pixels in
    [0, 1] (divided by N - 1). No mean/std normalisation follows. Cazenavete et al. 2022 (arXiv 2203.11932), eps 0.1.

    `mean` is `[D]` and `matrix` `[D, D]`, float64, with D = C·H·W; all arithmetic is float64, results float32.
    """

    mean: Tensor
    matrix: Tensor
    eps: float = 0.1

    @classmethod
    def fit(cls, images: Tensor, eps: float = 0.1) -> ZCA:
        """Fit on `images` `[N, C, H, W]`: uint8, or floats in [0, 1].

        Raises:
            DataError: fewer than two images, or more than `LARGEST` values an image.
        """
        count, values = len(images), images[0].numel() if len(images) else 0
        if count < 2:
            raise DataError(f"ZCA needs at least 2 images to fit; got {count}")
        if values > LARGEST:
            raise DataError(
                f"ZCA of images of {values} values needs a matrix of {values}²; pool them first with ?size=…"
            )
        zero = torch.zeros(values, dtype=torch.float64, device=images.device)
        mean = sum((_flat(part).sum(0) for part in images.split(CHUNK)), zero) / count
        covariance = torch.zeros(values, values, dtype=torch.float64, device=images.device)
        for part in images.split(CHUNK):
            centred = _flat(part) - mean
            covariance.addmm_(centred.T, centred)
        eigenvalues, vectors = torch.linalg.eigh(covariance / (count - 1))
        scale = (eigenvalues.clamp_min(0) + eps).rsqrt()
        return cls(mean, (vectors * scale) @ vectors.T, eps)

    @cached_property
    def inverse_matrix(self) -> Tensor:
        """`U (Λ + eps I)^(1/2) Uᵀ`, `[D, D]`; well conditioned because of eps."""
        return torch.linalg.inv(self.matrix)

    def transform(self, images: Tensor) -> Tensor:
        """Whiten `[N, C, H, W]` pixels (uint8, or floats in [0, 1]) to float32; differentiable for floats."""
        return self._map(images, lambda flat: (flat - self.mean) @ self.matrix)

    def inverse(self, whitened: Tensor) -> Tensor:
        """Return float32 pixels `[N, C, H, W]` from whitened ones; in [0, 1] as far as the images were."""
        return self._map(whitened, lambda flat: flat @ self.inverse_matrix + self.mean)

    def to(self, device: torch.device | str) -> ZCA:
        """Return the same map on `device`."""
        return ZCA(self.mean.to(device), self.matrix.to(device), self.eps)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that rebuild it: `ZCA(**state)` after `float(state["eps"])`."""
        return {"mean": self.mean, "matrix": self.matrix, "eps": torch.tensor(self.eps, dtype=torch.float64)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> ZCA:
        """Rebuild a map from what `state` returned."""
        return cls(state["mean"].double(), state["matrix"].double(), float(state["eps"]))

    def _map(self, images: Tensor, function: Flat) -> Tensor:
        if images[0].numel() != len(self.mean):
            raise DataError(f"ZCA was fitted on images of {len(self.mean)} values; got {images[0].numel()}")
        parts = [function(_flat(part)).float() for part in images.split(CHUNK)]
        return torch.cat(parts).reshape(images.shape)


def _flat(images: Tensor) -> Tensor:
    flat = images.reshape(len(images), -1).double()
    return flat if images.is_floating_point() else flat / 255

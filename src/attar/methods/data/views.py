"""What networks are shown: one augmentation a class, real and synthetic, and mirror images of synthetic ones."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.data import augmentation


class SiameseViews:
    """A Siamese draw for every class, replayed on any batch of these classes (arXiv 2102.08259)."""

    def __init__(self, augment: str, classes: int, shape: tuple[int, ...], rng: torch.Generator) -> None:
        drawn = augmentation(augment)
        self.views = [drawn.draw(1, shape, rng, siamese=True) for _ in range(classes)]

    def __call__(self, images: Tensor, classes: slice) -> Tensor:
        """Return `[classes · n, C, H, W]` from `[classes, n, C, H, W]`, each class under its own view."""
        if not any(view.operations for view in self.views[classes]):
            return images.flatten(0, 1)  # without a copy, forward or backward
        return torch.cat([view(batch) for view, batch in zip(self.views[classes], images, strict=True)])


class Shown:
    """How a method with the fields `ipc` and `mirror` shows its synthetic images to a network (arXiv 2407.08113)."""

    ipc: int
    mirror: bool

    @property
    def shown_ipc(self) -> int:
        """Synthetic images of a class that a network is shown."""
        return 2 * self.ipc if self.mirror else self.ipc

    def shown(self, images: Tensor) -> Tensor:
        """Return images `[…, n, C, H, W]`, with `mirror` followed by their mirror images, `[…, 2n, C, H, W]`."""
        return torch.cat([images, images.flip(-1)], dim=-4) if self.mirror else images

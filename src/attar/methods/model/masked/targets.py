"""What is to be guessed of a patch: its pixels, or the directions of its edges. Pure functions, and specs of them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attar.data import Images
from attar.errors import RecipeError
from attar.nets.token_specs import ViT
from attar.nets.tokens import pad_to
from attar.spec import kinds, spec


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Cut images `[n, C, S, S]`, S a multiple of `patch`, into rows `[n, places, C · patch²]`."""
    return functional.unfold(images, patch, stride=patch).mT


def images_of(patches: Tensor, patch: int) -> Tensor:
    """Put patches `[n, places, C · patch²]` together again: the inverse of `patches_of`."""
    return functional.fold(patches.mT, math.isqrt(patches.shape[1]) * patch, patch, stride=patch)


def standardised(patches: Tensor) -> Tensor:
    """Return every patch `[…, d]` less its mean, over the root of its variance (of d − 1) plus 1e-6: MAE's norm_pix."""
    variance = patches.var(-1, keepdim=True) if patches.shape[-1] > 1 else torch.zeros_like(patches)
    return (patches - patches.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()


def gradient_histograms(images: Tensor, cell: int, bins: int = 9) -> Tensor:
    """Return histograms of edge directions `[n, C, bins, S / cell, S / cell]` of images `[n, C, S, S]`.

    Central differences, zero at the border; the angle modulo π falls into one of `bins` equal ranges from 0 (a
    brightness that grows along x); a cell's entry is the mean over its pixels of the lengths in that range. The caller
    normalises (Dalal & Triggs 2005; the form of MaskFeat and DMJD, arXiv 2301.00230).
    """
    x, y = torch.zeros_like(images), torch.zeros_like(images)
    x[..., 1:-1] = images[..., 2:] - images[..., :-2]
    y[..., 1:-1, :] = images[..., 2:, :] - images[..., :-2, :]
    angle = torch.atan2(y, x).remainder(math.pi)
    index = (angle * (bins / math.pi)).long().remainder(bins)
    spread = functional.one_hot(index, bins).movedim(-1, 2) * torch.hypot(x, y).unsqueeze(2)
    return functional.avg_pool2d(spread.flatten(1, 2), cell).unflatten(1, (-1, bins))


@spec
class Pixels:
    """The pixels of a patch, in the space that networks see."""

    kind: Literal["pixels"] = "pixels"
    standardise: bool = False  # each patch on its own: MAE's norm_pix

    def outputs(self, net: ViT, channels: int) -> int:
        """Return how many numbers a patch has."""
        return net.patch**2 * channels

    def of(self, images: Tensor, net: ViT, data: Images) -> Tensor:
        """Return the targets `[n, places, outputs]` of images in the space that networks see."""
        patches = patches_of(pad_to(images.shape[-1], net.patch)(images), net.patch)
        return standardised(patches) if self.standardise else patches


@spec
class HOG:
    """Histograms of the directions of edges in the cells of a patch, from pixels in [0, 1], each with a layer norm."""

    kind: Literal["hog"] = "hog"
    cells: int = Field(2, ge=1)  # a side of each patch: of 8 pixels in patches of 16
    bins: int = Field(9, ge=2)  # over half a turn

    def outputs(self, net: ViT, channels: int) -> int:
        """Return how many numbers a patch has.

        Raises:
            RecipeError: the cells do not divide the patch.
        """
        if net.patch % self.cells:
            raise RecipeError(f"patches of {net.patch} pixels cannot hold {self.cells} cells a side; set target.cells")
        return self.cells**2 * channels * self.bins

    def of(self, images: Tensor, net: ViT, data: Images) -> Tensor:
        """Return the targets `[n, places, outputs]` of images in the space that networks see."""
        pixels = data.denormalise(images)
        padded = pad_to(images.shape[-1], net.patch)(pixels)
        found = gradient_histograms(padded, net.patch // self.cells, self.bins).movedim(2, -1)
        found = functional.layer_norm(found, (self.bins,)).movedim(-1, 2)
        return patches_of(found.flatten(1, 2), self.cells)


Target = kinds(Pixels | HOG)

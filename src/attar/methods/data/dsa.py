"""DSA: gradient matching under one augmentation shared by real and synthetic images."""

from __future__ import annotations

from typing import ClassVar, Literal

from attar.methods.data.dc import GradientMatching
from attar.spec import method


@method
class SiameseAugmentation(GradientMatching):
    """Match gradients under one differentiable augmentation, the same for the real and the synthetic images of a class.

    Gradients flow through the augmentation into the pixels; the network's own training is augmented image by image
    (arXiv 2102.08259). Everything else is `GradientMatching`.
    """

    version: ClassVar = 1

    init: Literal["noise", "real"] = "real"
    augment: str = "dsa"  # one operation per class and update; drop flips for digits: dsa-noflip

"""DMJD: views that hide what the others show, and targets for visible patches too (arXiv 2301.00230)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attar.artifacts.autoencoder import Autoencoder
from attar.data import Images
from attar.data.soft_labels.views import Views
from attar.methods.model.mae import MaskedAutoencoding
from attar.methods.model.masked.masks import disjoint_maskings, random_masking
from attar.methods.model.masked.pretraining import Pretraining
from attar.methods.model.masked.targets import HOG, Target
from attar.nets.masked import MaskedAutoencoder, Masking
from attar.run import Optimizer, Run
from attar.spec import method
from attar.train.objective import Term

BETA = 2.0  # where the visible branch's error turns from a square into a line


@method
class DisjointMasking(MaskedAutoencoding):
    """Show an encoder several views whose hidden patches complement each other (Ma et al. 2023, arXiv 2301.00230).

    Every view hides a share `hidden` of the patches, each later one first what none before it hid, so that together
    they hide a share `predicted`. L = L_hidden + weight · L_visible: the decoder guesses hidden patches (mean square
    error), a projector and a linear layer on the encoder's tokens guess visible ones (smooth L1, β = 2). Targets are
    histograms of edge directions. One pass counts as `views` effective epochs. The paper's encoder has convolutions
    ahead of its attention; here it is a plain ViT, as in its rows on MaskFeat.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **MaskedAutoencoding.presets["small"],
            "train": {**MaskedAutoencoding.presets["small"]["train"], "steps": 300},
            "rate": 1.2e-3,
        }
    }

    hidden: float = Field(0.6, gt=0, lt=1)  # share of the patches that a view hides: the corruption rate
    predicted: float = Field(1.0, gt=0, le=1)  # share that is hidden in some view: the prediction rate
    views: int = Field(2, ge=1)  # of each image in a step
    disjoint: bool = True  # off: views drawn without regard to each other
    block: int = Field(2, ge=1)  # patches a side of the squares that are hidden together
    target: Target = HOG()
    weight: float = Field(1.0, ge=0)  # of the visible patches, θ
    order: Literal["aligned", "released"] = "aligned"  # released: visible targets in raster order, not the guesses'
    rate: float | None = Field(6e-4, gt=0)  # learning rate for 256 images newly guessed; none: train.optimizer.lr
    train: Pretraining = Pretraining(
        epochs=400, batch=512, warmup_epochs=20, views=Views(scale=(0.5, 1.0))
    )  # 800 effective epochs; clip=3 for ViT-L

    def optimizer(self, count: int) -> Optimizer:
        """Return the optimizer, whose rate grows with the images of a step times predicted / hidden."""
        if self.rate is None:
            return self.train.optimizer
        lr = self.rate * min(self.train.batch, count) / 256 * self.predicted / self.hidden
        return dataclasses.replace(self.train.optimizer, lr=lr)

    def build(self, model: MaskedAutoencoder, data: Images, teacher: Any) -> nn.Module:
        """Return projector and predictor of the visible patches."""
        width, outputs = self.net.width, self.target.outputs(self.net, data.channels)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()]
        last = [nn.Linear(width, width), nn.LayerNorm(width, elementwise_affine=False)]
        return nn.Sequential(*layers, *last, nn.Linear(width, outputs))

    def maskings(self, count: int, side: int, rng: torch.Generator) -> list[Masking]:
        """Return one masking for each view of the images of a step."""
        if not self.disjoint:
            return [random_masking(count, side, self.hidden, rng, block=self.block) for _ in range(self.views)]
        return disjoint_maskings(
            count, side, self.hidden, rng, predicted=self.predicted, views=self.views, block=self.block
        )

    def terms(
        self, model: MaskedAutoencoder, state: Any, images: Tensor, masking: Masking, target: Tensor
    ) -> Iterator[Term]:
        """Yield the errors of hidden and of visible patches."""
        latent = model.latent(images, masking)
        yield Term("hidden", self.reconstruction(model.decoder(latent, masking), target, masking))
        if self.weight:
            guesses = state(latent[:, model.encoder.patches.leading :])
            yield Term(
                "visible", functional.smooth_l1_loss(guesses, self.shown(target, masking), beta=BETA), self.weight
            )

    def shown(self, target: Tensor, masking: Masking) -> Tensor:
        """Return the targets of the visible patches `[n, k, outputs]`, in the order of their tokens.

        The released code takes them in raster order instead, so that tokens are told of other patches than their own.
        """
        if self.order == "aligned":
            return masking.take(target)
        return target[~masking.hidden].unflatten(0, (len(target), -1))

    def __call__(self, run: Run, *, data: Images) -> Autoencoder:
        """Train encoder and decoder."""
        return self.pretrained(run, data)

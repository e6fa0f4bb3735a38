"""DataDAM: match where images excite every block of a random network, and the mean embedding behind the last."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar import losses
from attar.methods.data.dm import DistributionMatching, Embed
from attar.nets import ConvNet, Net, Network
from attar.run import SGD, Optimizer
from attar.spec import method

SCALE = 100.0  # of both terms in the authors' code; published learning rates are for the loss times this


@method
class AttentionMatching(DistributionMatching):
    """Match the mean attention map of real and synthetic images of each class, block by block (arXiv 2310.00093).

    Loss: 100 · Σ_classes (Σ_blocks but the last ‖mean A(real) − mean A(synthetic)‖² + λ ‖mean e(real) − mean
    e(synthetic)‖²), with A the maps of `losses.attention_maps` and e the embedding. Everything else is
    `DistributionMatching`. The network has batch norm, as in the authors' code: all classes go through it together.
    """

    version: ClassVar = 1
    protocol: ClassVar = "datadam"
    presets: ClassVar = {
        # at the paper's rate a small network's images saturate: 15 % against 70 % at 14 px and 3 images a class
        "small": {**DistributionMatching.presets["small"], "optimizer": {"lr": 0.05}},
    }

    steps: int = Field(8000, ge=1)  # one random network each
    optimizer: Optimizer = SGD(lr=1.0, momentum=0.5)  # of the pixels; the paper: lr 10 above 50 images per class
    real_batch: int = Field(64, ge=1)  # real images per class and step, as in the authors' code
    net: Net = ConvNet(depth=3, width=128, norm="batch")
    power: float = Field(4.0, ge=1)  # p of the attention maps; the authors' code: 1
    embedding_weight: float = Field(0.01, ge=0)  # λ; the paper: 0.02 above 64 pixels

    @model_validator(mode="after")
    def _attends(self) -> AttentionMatching:
        if self.net.kind == "mlp":
            raise ValueError("attention is over the places of a map, and an mlp has none; take net=convnet, or 'dm'")
        if getattr(self.net, "depth", 2) < 2:
            raise ValueError(
                "the attention of every block but the last is matched, and this network has one block; raise net.depth "
                "to at least 2, or take 'dm'"
            )
        return self

    def embedding(self, network: Network) -> Embed:
        """Return all that is matched as one vector, scaled so that its squared distance is the loss."""

        def embed(images: Tensor) -> Tensor:
            maps, embedding = network.features(images)
            attended = [losses.attention_maps(map, self.power) for map in maps[:-1]]
            scaled = math.sqrt(self.embedding_weight) * embedding
            return math.sqrt(SCALE) * torch.cat([*attended, scaled], dim=1)

        return embed

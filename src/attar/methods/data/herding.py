"""Herding: follow the class mean."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attar.artifacts import Selection
from attar.data import Images
from attar.methods.data.features import embedding
from attar.nets import ConvNet, Net
from attar.run import Run
from attar.spec import method


def herd(features: Tensor, count: int, *, farthest: bool = False) -> Tensor:
    """Return `count` indices whose running sum of features stays nearest to that of the mean (Welling 2009).

    μ = mean_i h_i; for t = 0 … count − 1 add argmin over x not yet chosen of ‖(t + 1) μ − Σ_{s chosen} h_s − h_x‖₂.

    Args:
        features: `[n, d]`.
        count: how many, at most n.
        farthest: take the argmax instead, as DeepCore's code does (it picks outliers); only to rerun published tables.
    """
    features = features.double()
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for t in range(count):
        distance = ((t + 1) * mean - total - features).square().sum(1)
        if farthest:
            distance = -distance
        best = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total += features[best]
    return torch.tensor(chosen)


@method
class Herding:
    """Choose, class by class, images whose mean embedding follows that of all images (as in arXiv 2204.08499)."""

    version: ClassVar = 1
    presets: ClassVar = {"small": {"net": {"depth": 2, "width": 32}, "epochs": 1}}

    ipc: int = Field(10, ge=1)  # images per class
    net: Net = ConvNet(depth=3, width=128)  # whose embedding is compared
    epochs: int = Field(10, ge=1)  # that the network is trained for first (the paper and its examples: 10)
    legacy: bool = False  # the official code's argmax, which picks outliers

    def __call__(self, run: Run, *, data: Images) -> Selection:
        data.draw(self.ipc, run.rng("check"))  # refuses a class that is too small before any work is done
        features = embedding(run, data, self.net, self.epochs)
        chosen = [members[herd(features[members], self.ipc, farthest=self.legacy)] for members in data.by_class]
        return Selection(torch.cat(chosen), data.fingerprint, data.source)

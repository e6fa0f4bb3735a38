"""k-means: one real image for every cluster of its class."""

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

ROUNDS = 100  # at most; assignments rest long before


def k_means(features: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return `count` centres `[count, d]` that Lloyd's rounds rest at, from a k-means++ start (Arthur & Vassilvitskii).

    A start is drawn with a chance in proportion to its squared distance to the nearest one drawn before; then every
    centre becomes the mean of the points nearest to it, again and again. One that no point is nearest to stays.

    Args:
        features: `[n, d]`, n at least `count`.
        count: clusters.
        rng: draws the start.
    """
    features = features.double()
    centres = features[torch.randint(len(features), (1,), generator=rng).to(features.device)]
    while len(centres) < count:
        nearest = torch.cdist(features, centres).amin(1).square().cpu()
        if not bool(nearest.any()):  # every point is a centre already, and the rest are copies of them
            nearest = torch.ones_like(nearest)
        drawn = torch.multinomial(nearest, 1, generator=rng).to(features.device)
        centres = torch.cat([centres, features[drawn]])
    before = None
    for _ in range(ROUNDS):
        owner = torch.cdist(features, centres).argmin(1)
        if before is not None and torch.equal(owner, before):
            break
        before = owner
        sizes = torch.bincount(owner, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, owner, features)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], centres)
    return centres


def nearest_of(features: Tensor, centres: Tensor) -> Tensor:
    """Return indices `[k]`: for each centre `[k, d]`, in order, the nearest point `[n, d]` that is not taken yet."""
    distances = torch.cdist(features.double(), centres.double())
    chosen = []
    for centre in range(len(centres)):
        best = int(distances[:, centre].argmin())
        chosen.append(best)
        distances[best] = torch.inf
    return torch.tensor(chosen)


@method
class KMeansSelection:
    """Choose, class by class, the images nearest to the centres of as many clusters (DC-BENCH, arXiv 2207.09639)."""

    version: ClassVar = 1
    presets: ClassVar = {"small": {"net": {"depth": 2, "width": 32}, "epochs": 1}}

    ipc: int = Field(10, ge=1)  # images per class, and clusters
    net: Net = ConvNet(depth=3, width=128)  # whose embedding is clustered
    epochs: int = Field(10, ge=1)  # that the network is trained for first

    def __call__(self, run: Run, *, data: Images) -> Selection:
        data.draw(self.ipc, run.rng("check"))  # refuses a class that is too small before any work is done
        features = embedding(run, data, self.net, self.epochs)
        chosen = []
        for label, members in enumerate(data.by_class):
            own = features[members]
            chosen.append(members[nearest_of(own, k_means(own, self.ipc, run.rng("start", label)))])
        return Selection(torch.cat(chosen), data.fingerprint, data.source)

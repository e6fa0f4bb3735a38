"""k-center greedy: leave no image far from a chosen one."""

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


def k_center(features: Tensor, count: int, first: int) -> Tensor:
    """Return `count` indices: `first`, then again and again the point farthest from all chosen (Sener & Savarese 2018).

    Add argmax over x of min_{s chosen} ‖h_x − h_s‖₂, with a running minimum: O(count · n · d).

    Args:
        features: `[n, d]`.
        count: how many, at most n.
        first: index of the first centre.
    """
    features = features.double()
    chosen = [first]
    nearest = (features - features[first]).square().sum(1)
    nearest[first] = -1  # a chosen point is never chosen again, not even among duplicates
    while len(chosen) < count:
        farthest = int(nearest.argmax())
        chosen.append(farthest)
        nearest = torch.minimum(nearest, (features - features[farthest]).square().sum(1))
        nearest[chosen] = -1
    return torch.tensor(chosen)


@method
class KCenterGreedy:
    """Choose, class by class, images that leave none far from a chosen one (arXiv 1708.00489, arXiv 2204.08499)."""

    version: ClassVar = 1
    presets: ClassVar = {"small": {"net": {"depth": 2, "width": 32}, "epochs": 1}}

    ipc: int = Field(10, ge=1)  # images per class
    net: Net = ConvNet(depth=3, width=128)  # whose embedding is compared
    epochs: int = Field(10, ge=1)  # that the network is trained for first

    def __call__(self, run: Run, *, data: Images) -> Selection:
        drawn = data.draw(self.ipc, run.rng("first"))  # refuses a class that is too small before any work is done
        features = embedding(run, data, self.net, self.epochs)
        chosen = []
        for members, start in zip(data.by_class, drawn[:, 0], strict=True):
            first = int((members == start).nonzero())
            chosen.append(members[k_center(features[members], self.ipc, first)])
        return Selection(torch.cat(chosen), data.fingerprint, data.source)

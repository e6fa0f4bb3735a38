"""DM: match mean embeddings in random networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attar import losses, nets
from attar.artifacts import DistilledSet
from attar.data import Images
from attar.methods.data.views import Shown, SiameseViews
from attar.nets import ConvNet, Net, Network
from attar.run import SGD, Optimizer, Run
from attar.spec import method

Embed = Callable[[Tensor], Tensor]  # images [n, C, H, W] -> what is matched, [n, features]


@torch.no_grad()
def class_means(embed: Embed, data: Images, real: Tensor, views: SiameseViews, classes: slice, *, some: int) -> Tensor:
    """Return the mean embedding `[classes, features]` of the images at `real` `[all classes, n]`, without gradient.

    `some` classes go through the network at a time: what is made just before is still in the cache.
    """
    parts = (slice(k, min(k + some, classes.stop)) for k in range(classes.start, classes.stop, some))
    found = [embed(views(data.normalised(real[part]), part)).unflatten(0, (-1, real.shape[1])) for part in parts]
    return torch.cat([embeddings.mean(1) for embeddings in found])


@method
class DistributionMatching(Shown):
    """Match the mean embedding of real and synthetic images of each class over random networks (arXiv 2110.04181).

    No inner loop and no second order, so it is the cheapest condensation and scales to many images per class. Networks
    with batch norm get all classes in one forward. The loss grows with the feature dimension: a learning rate does not
    carry over to another network.
    """

    version: ClassVar = 1
    protocol: ClassVar = "dsa"  # of evaluation
    presets: ClassVar = {
        "small": {"steps": 300, "real_batch": 64, "net": {"depth": 2, "width": 32}},
    }

    ipc: int = Field(10, ge=1)  # images per class
    steps: int = Field(20_000, ge=1)  # one random network each
    optimizer: Optimizer = SGD(lr=1.0, momentum=0.5)  # of the pixels; the paper: lr 10 from 100 images per class on
    real_batch: int = Field(256, ge=1)  # real images per class and step
    net: Net = ConvNet(depth=3, width=128)
    augment: str = "dsa"  # one Siamese draw per class and step
    mirror: bool = False  # the mirror image of every synthetic image counts as well (FYI)

    def __call__(self, run: Run, *, data: Images) -> DistilledSet:
        synthetic = DistilledSet.from_real(data, self.ipc, run.rng("init"), protocol=self.protocol)
        pixels = run.learner("pixels", synthetic.images, self.optimizer)
        network = nets.freeze(nets.fresh(self.net, data, run.rng("net"), device=run.device))
        images = self.steps * data.num_classes * (self.real_batch + self.shown_ipc)
        embed = run.compiled(self.embedding(network), images)
        whole = nets.batch_statistics(network)
        some = data.num_classes if whole else max(1, run.plan.chunk // self.real_batch)
        for step in run.loop("match", self.steps):
            nets.reset(network, run.rng("net", step))
            real = data.draw(self.real_batch, run.rng("real", step), repeat=True)
            shape = synthetic.images.shape[1:]
            views = SiameseViews(self.augment, data.num_classes, shape, run.rng("augment", step))
            for part in run.chunks(data.num_classes, self.shown_ipc, whole=whole):
                mean = class_means(embed, data, real, views, part, some=some)
                fake = embed(views(self.shown(synthetic.by_class()[part]), part)).unflatten(0, (-1, self.shown_ipc))
                run.backward(losses.squared_mean_distance(mean, fake.mean(1)), pixels)
            pixels.step()
        return synthetic

    def embedding(self, network: Network) -> Embed:
        """Return what the means of real and synthetic images are matched in."""
        return network.embed

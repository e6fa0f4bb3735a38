"""PCA: prune to easy images, combine them into mosaics, augment by crops of single tiles; hard labels alone."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attar.artifacts import DistilledSet
from attar.data import Images
from attar.data.soft_labels import Views
from attar.data.soft_labels.views import crop, flip
from attar.errors import DataError, RecipeError
from attar.nets import Net, ResNet18
from attar.run import SGD, Constant, Run
from attar.spec import method
from attar.train.network import TrainNetwork
from attar.train.training import Training, predict


def error_norms(logits: Tensor, labels: Tensor) -> Tensor:
    """Return EL2N `[n]`, ‖softmax(z) − onehot(y)‖₂, for logits `[n, classes]` and labels `[n]` (arXiv 2107.07075)."""
    wanted = functional.one_hot(labels, logits.shape[1]).to(logits)
    return torch.linalg.vector_norm(logits.softmax(1) - wanted, dim=1)


def easiest(scores: Tensor, data: Images, count: int, pool: float | None, rng: torch.Generator) -> Tensor:
    """Return indices `[classes, count]` of images with small scores `[N]`, the same number of every class.

    Without a pool these are the `count` smallest of each class, the smallest first; with one, `count` at random from
    that share of the class, or from `count` images where the share holds fewer.

    Raises:
        DataError: a class has fewer than `count` images.
    """
    rows = []
    for label, members in enumerate(data.by_class):
        if len(members) < count:
            raise DataError(
                f"class '{data.classes[label]}' of {data.source} has {len(members)} images, {count} were asked for "
                "(ipc · tiles²); lower ipc or tiles"
            )
        ranked = members[torch.argsort(scores[members], stable=True)]
        if pool is not None:
            ranked = ranked[: max(count, math.ceil(pool * len(ranked)))]
            ranked = ranked[torch.randperm(len(ranked), generator=rng)]
        rows.append(ranked[:count])
    return torch.stack(rows)


def mosaic(images: Tensor, tiles: int) -> Tensor:
    """Return `[m, C, S, S]`, each made of tiles² images of `[m · tiles², C, S, S]`, each averaged to S / tiles.

    Row by row: image 0 is the upper left tile, image 1 the one right of it.
    """
    if tiles == 1:
        return images
    channels, size = images.shape[1], images.shape[-1]
    small = functional.avg_pool2d(images, tiles)
    grid = small.view(-1, tiles, tiles, channels, size // tiles, size // tiles)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, size, size)


class TileCrops:
    """Random crops of a mosaic that never leave one tile, with hard labels: what a student of PCA is trained on.

    One epoch is `passes` views of every image. A tile is chosen uniformly, enlarged to the full size, and cropped and
    mirrored as `views` say. Rows replay exactly; train with `augment="none"`. A `Labelled` for `fit`.

    Args:
        images: `[N, C, S, S]` in the space networks see.
        labels: `[N]` int64.
        tiles: tiles a side; with 1 this is the usual random resized crop.
        views: crop and flip inside the tile; they do not mix.
        key: seed of all views, in [0, 2⁶³).
        passes: views of every image.

    Raises:
        RecipeError: `tiles` does not divide the side, or `views` mix images.
    """

    def __init__(self, images: Tensor, labels: Tensor, tiles: int, *, views: Views, key: int, passes: int) -> None:
        if views.mix != "none":
            raise RecipeError("crops of tiles carry one hard label each and do not mix; leave views.mix at 'none'")
        divides(images.shape[-1], tiles)
        self.images, self.labels, self.tiles = images.detach(), labels, tiles
        self.views, self.key, self.passes = views, key, passes

    def __len__(self) -> int:
        return self.passes * len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return views `[n, C, S, S]` and labels `[n]` of rows `[n]`."""
        count, size = len(self.images), self.images.shape[-1]
        samples, views = indices % count, indices // count
        shown = self.tile(samples, views)
        drawn = self.views.draw(self.key, samples, views, count=count, size=size)
        own = samples.to(self.labels.device)
        return flip(crop(shown, drawn.box), drawn.mirrored), self.labels[own]

    def tile(self, samples: Tensor, views: Tensor) -> Tensor:
        """Return the chosen tile of each row, enlarged to the full size by bilinear interpolation."""
        images, tiles = self.images[samples.to(self.images.device)], self.tiles
        if tiles == 1:
            return images
        # a partner to mix with is drawn uniformly from `count` things: here from the tiles
        which = Views(mix="mixup").draw(self.key, samples, views, count=tiles**2, size=images.shape[-1]).partner
        side = images.shape[-1] // tiles
        grid = images.unfold(2, side, side).unfold(3, side, side)  # [n, C, tiles, tiles, side, side]
        rows = torch.arange(len(images), device=images.device)
        place = which.to(images.device)
        chosen = grid[rows, :, place // tiles, place % tiles]
        return functional.interpolate(chosen, size=images.shape[-1], mode="bilinear", align_corners=False)


def divides(size: int, tiles: int) -> None:
    """Raise RecipeError unless pictures of `size` pixels a side can be cut into `tiles` a side."""
    if size % tiles:
        known = ", ".join(str(n) for n in range(1, min(size, 8) + 1) if size % n == 0)
        raise RecipeError(f"{size}×{size} pictures do not make {tiles}×{tiles} equal tiles; tiles can be {known}")


@method
class PruneCombineAugment:
    """Keep easy real images, show four of them in the space of one, and label them by class (arXiv 2502.06434).

    Easy images are those that networks early in training already get right (EL2N, the mean over several). Whole images
    are averaged down and tiled; students see random crops of single tiles (`TileCrops`). No soft labels are stored.
    With `pool=1` images are random and nothing is trained, and with `tiles=1` nothing is combined.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {
            "pool": 0.5,
            "scorers": 3,
            "scoring": {"steps": 120, "batch": 100},
            "net": {"kind": "convnet", "depth": 2, "width": 16, "norm": "batch"},
        },
    }

    ipc: int = Field(10, ge=1)  # images per class
    tiles: int = Field(2, ge=1)  # a side; unconfirmed for the paper, RDED's is 2, and 1 on images of 32 px
    pool: float | None = Field(None, gt=0, le=1)  # share of the easiest of a class to draw from; none: the very easiest
    scorers: int = Field(10, ge=1)  # networks that score every image; EL2N's own paper: 10
    scoring: Training = Training(
        epochs=19, batch=128, optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4), schedule=Constant()
    )  # of a scorer: early, before it has learnt every image; EL2N's own paper: 20 epochs of 200
    net: Net = ResNet18(norm="batch")  # of the scorers

    def __call__(self, run: Run, *, data: Images) -> DistilledSet:
        divides(data.size, self.tiles)
        scores = torch.zeros(len(data))
        count, rng = self.ipc * self.tiles**2, run.rng("prune")
        easiest(scores, data, count, None, rng)  # refuses a class that is too small before any work is done
        if self.pool != 1:
            scores = self.scores(run, data)
        chosen = easiest(scores, data, count, self.pool, rng)
        pixels = mosaic(data.unit(chosen.flatten()), self.tiles)
        labels = torch.arange(data.num_classes, device=pixels.device).repeat_interleave(self.ipc)
        return DistilledSet(data.normalise(pixels), labels, data, {"protocol": "pca", "tiles": self.tiles})

    def scores(self, run: Run, data: Images) -> Tensor:
        """Return the mean EL2N `[N]` over networks early in training, on the CPU."""
        total = torch.zeros(len(data))
        for number in range(self.scorers):
            seed = run.key("scorer", number) % 2**31  # networks of this run's own, and not the same one many times
            training = TrainNetwork(net=self.net, training=self.scoring)
            scorer = run.stage(f"scorer {number}", training, seed=seed, data=data)
            logits = predict(scorer.module.to(run.device), data)
            total += error_norms(logits, data.labels.to(logits.device)).cpu()
        return total / self.scorers

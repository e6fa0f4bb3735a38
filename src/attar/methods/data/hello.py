"""HeLlO: mosaics of easy crops, labelled online by an encoder with low-rank updates instead of stored labels."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attar import losses, nets
from attar.artifacts import DistilledSet, Student
from attar.artifacts.projected import ProjectedSet
from attar.data import Images
from attar.data.soft_labels import Views
from attar.data.soft_labels.views import crop
from attar.errors import RecipeError
from attar.methods.data.pca import divides, mosaic
from attar.methods.data.recovery.encoder import Encoder, class_means, encoder_of, known_encoder
from attar.methods.data.recovery.projector import Projector, projection_loss
from attar.nets import Net, ResNet18
from attar.nets.initialise import seeded
from attar.run import SGD, Adam, Cosine, Optimizer, Run
from attar.spec import method
from attar.train.training import Order, Training, batch_loss

CROPS = Views(ratio=(1.0, 1.0), flip=0.0)


def easiest_crops(
    network: nn.Module, data: Images, candidates: Tensor, *, count: int, crops: int, tiles: int, key: int
) -> Tensor:
    """Return the `count` easiest crops `[count, C, S, S]` of images of one class, at the full size, easiest first.

    Of every candidate `[n]` the best of `crops` random square crops counts; the network scores each by cross-entropy
    as it will be seen, averaged down to S / tiles, in the middle of zeros (RDED, Sun et al. 2024, arXiv 2312.03526).
    """
    size, best = data.size, torch.full((len(candidates),), torch.inf)
    chosen = torch.zeros(len(candidates), data.channels, size, size, device=data.pixels.device)
    for number in range(crops):
        drawn = CROPS.draw(key, candidates, torch.full_like(candidates, number), count=len(data), size=size)
        shown = crop(data.normalised(candidates), drawn.box)
        small = functional.avg_pool2d(shown, tiles)
        before, after = (size - small.shape[-1]) // 2, size - small.shape[-1] - (size - small.shape[-1]) // 2
        with torch.no_grad():
            logits = network(functional.pad(small, (before, after, before, after)))
        labels = data.labels[candidates.to(data.labels.device)]
        scores = losses.cross_entropy(logits, labels, reduction="none").cpu()
        better = scores < best
        best[better] = scores[better]
        chosen[better] = shown[better]
    return chosen[best.argsort(stable=True)[:count].to(chosen.device)]


@method
class LabelLightening:
    """Store a few low-rank factors instead of soft labels for every view (Yu et al. 2025, arXiv 2408.08201).

    Images are mosaics of easy crops of real ones. Labels come from a projector: a public encoder with low-rank updates
    of its layers and a head that starts at the embeddings of the class names, trained to say what networks along a
    training say. It labels every view while a student trains (`ProjectedLoss`). The paper's last update of the images
    (+0.1 points) is not made. Without a text encoder the head starts at class means and is stored as well.
    """

    version: ClassVar = 2
    presets: ClassVar = {
        "small": {
            "candidates": 100,
            "weak": 3,
            "net": {"kind": "convnet", "depth": 2, "width": 32, "norm": "batch"},
            "squeeze": {"steps": 320, "batch": 256, "optimizer": {"kind": "adamw", "lr": 0.005}, "augment": "none"},
            "stand_in": {"kind": "convnet", "depth": 2, "width": 32},
            "pretraining": {"steps": 200, "batch": 128, "optimizer": {"kind": "adamw", "lr": 0.005}},
            "steps": 1500,
            "batch": 128,
            "optimizer": {"lr": 0.02},
        },
    }

    ipc: int = Field(10, ge=1)  # images per class
    tiles: int = Field(2, ge=1)  # a side of every image; RDED's, and 1 on images of 32 px
    candidates: int = Field(300, ge=1)  # real images a class that crops are taken of
    crops: int = Field(5, ge=1)  # of every candidate
    net: Net = ResNet18(norm="batch")  # of the weak teachers; the last one scores crops
    weak: int = Field(9, ge=1)  # networks, spread evenly along one training; their logits are averaged
    squeeze: Training = Training(
        epochs=199, batch=128, optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4), schedule=Cosine()
    )  # that training
    rank: int = Field(8, ge=0)  # of the updates of the encoder's layers; 0: a linear probe
    head_rank: int = Field(64, ge=1)  # of the update of the head; 128 for ImageNet-1K
    steps: int = Field(10_000, ge=1)  # of the projector; unconfirmed, as are the next four
    batch: int = Field(256, ge=1)  # real images a step
    optimizer: Optimizer = Adam(lr=1e-3)  # of the factors, along a cosine to zero
    hard_weight: float = Field(1.0, ge=0)  # λ, of the cross-entropy with the real labels
    augment: str = "none"  # of the real images
    stand_in: Net | None = None  # an encoder to train on turned images where none is given; none: one must be given
    pretraining: Training = Training(epochs=19, batch=128, optimizer=SGD(lr=0.1, momentum=0.9), schedule=Cosine())

    def __call__(self, run: Run, *, data: Images, encoder: Student | str | None = None) -> ProjectedSet:
        divides(data.size, self.tiles)
        count = self.ipc * self.tiles**2
        if self.candidates < count:
            raise RecipeError(f"{count} crops a class (ipc · tiles²) need as many candidates; got {self.candidates}")
        if (steps := self.squeeze.total(len(data))) < self.weak:
            raise RecipeError(
                f"{self.weak} weak teachers lie along a training of as many steps at least; got {steps}. Lower weak, "
                "or raise squeeze.steps"
            )
        candidates = data.draw(max(count, min(self.candidates, *map(len, data.by_class))), run.rng("candidates"))
        origin = known_encoder(run, data, encoder, self.stand_in, self.pretraining)
        known = encoder_of(origin, data).to(run.device)
        weak = self.weak_teachers(run, data)
        projector, named = self.started(run, data, known)
        self.train(run, data, projector, weak)
        key = run.key("crops")
        parts = [
            easiest_crops(weak[-1], data, members, count=count, crops=self.crops, tiles=self.tiles, key=key)
            for members in candidates
        ]
        labels = torch.arange(data.num_classes, device=run.device).repeat_interleave(self.ipc)
        images = mosaic(torch.cat(parts), self.tiles)
        made = DistilledSet(images, labels, data, {"protocol": "hello", "tiles": self.tiles})
        if isinstance(origin, Student):
            made.labellers = [origin]
        else:
            place = origin if isinstance(origin, str) else str(origin.resolve())
            made.hints["encoder"] = place  # public and large: named, not kept
        factors = projector.factors()
        if not named:
            factors["head"] = projector.directions
        about = {"rank": self.rank, "head_rank": self.head_rank, "encoder": known.fingerprint, "named": named}
        return ProjectedSet.of(made, factors, about)

    def weak_teachers(self, run: Run, data: Images) -> list[nn.Module]:
        """Train one network and return what it was at `weak` steps, evenly spread and ending with the last."""
        module = nets.fresh(self.net, data, run.rng("net"), device=run.device)
        steps = self.squeeze.total(len(data))
        learner = run.learner("weak teacher", module, self.squeeze.optimizer, schedule=self.squeeze, steps=steps)
        weak = [run.keep(f"weak teacher {k}", copy.deepcopy(module).requires_grad_(False)) for k in range(self.weak)]
        order = Order(data, self.squeeze, run.rng)
        ends = {max(1, round(steps * (k + 1) / self.weak)): k for k in range(self.weak)}
        module.train()
        for step in run.loop("weak teachers", steps):
            learner.update(batch_loss(module, *order.batch(step)))
            if step + 1 in ends:
                weak[ends[step + 1]].load_state_dict(module.state_dict())
        return [network.eval() for network in weak]

    def started(self, run: Run, data: Images, encoder: Encoder) -> tuple[Projector, bool]:
        """Return the projector before training, and whether its head comes from the names of the classes."""
        named = encoder.directions(data.classes)
        directions = class_means(encoder, data, run.rng("means")) if named is None else named
        with seeded(run.rng("factors")):
            made = Projector(encoder, directions, rank=self.rank, head_rank=self.head_rank)
        return made, named is not None

    def train(self, run: Run, data: Images, projector: Projector, weak: list[nn.Module]) -> None:
        """Train the factors to say what the weak teachers say on average of real images, and their class."""

        @torch.no_grad()
        def told(images: Tensor) -> Tensor:
            return torch.stack([network(images) for network in weak]).mean(0)

        some = data.normalised(torch.randperm(len(data), generator=run.rng("scale"))[: self.batch])
        projector.fit_scale(some, told(some))
        factors = list(projector.factors().values())
        learner = run.learner("projector", factors, self.optimizer, schedule=Cosine(), steps=self.steps)
        training = Training(steps=self.steps, batch=self.batch, augment=self.augment)
        order = Order(data, training, lambda name, *counters: run.rng(f"projector {name}", *counters))
        for step in run.loop("project", self.steps):
            images, labels = order.batch(step)
            learner.update(projection_loss(projector(images), told(images), labels, self.hard_weight))


def projector_of(made: ProjectedSet, encoder: Encoder) -> Projector:
    """Return the projector of a set on its encoder, ready to label.

    Raises:
        RecipeError: it is another encoder than the one the factors were trained on.
    """
    about, factors = made.projector, dict(made.factors)
    if encoder.fingerprint != about["encoder"]:
        raise RecipeError(
            f"this set's label projector stands on another encoder (fingerprint {about['encoder'][:12]}…); "
            "hand over the one it was made with"
        )
    directions = encoder.directions(made.classes) if about["named"] else factors.pop("head")
    if directions is None:
        raise RecipeError("this set's head starts from class names, and the encoder has no text side; add a tokenizer")
    if "scale" in factors:  # version 1 stored the scale itself
        factors["log_scale"] = factors.pop("scale").log()
    projector = Projector(encoder, directions, rank=about["rank"], head_rank=about["head_rank"])
    projector.load_factors(factors)
    return projector.eval().requires_grad_(False)

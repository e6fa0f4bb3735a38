"""How a dual encoder is trained on pairs of images and texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from attar.data import Images
from attar.data.captions import captions_of
from attar.data.plans import order_of
from attar.data.soft_labels.views import Views
from attar.data.tokenizers import Tokenizer
from attar.nets.dual import DualEncoder, TowerGates
from attar.run import AdamW, Cosine, Optimizer, Run
from attar.spec import spec
from attar.train.retrieval import groups_of

PLAIN = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)  # the pictures as they are


@spec
class PairTraining:
    """How pairs are shown. Defaults are TinyCLIP's scripts' (arXiv 2309.12314)."""

    epochs: int = Field(6, ge=1)  # passes over the data, unless `steps` are given
    steps: int | None = Field(None, ge=1)  # optimizer steps
    batch: int = Field(32_768, ge=2)  # pairs a step, at most the whole set
    optimizer: Optimizer = AdamW(lr=1e-4, beta2=0.98, eps=1e-6, weight_decay=0.2, decays="weights")
    warmup: int = Field(2000, ge=0)  # steps, at most a fifth of a stage's; then half a cosine down to 0
    clip: float | None = Field(5.0, gt=0)  # largest length of the gradient
    views: Views = Views(scale=(0.9, 1.0), flip=0.0)  # crops; a mirrored picture would belie 'left' and 'right'

    def total(self, count: int) -> int:
        """Return the number of optimizer steps for `count` pairs."""
        return self.steps or self.epochs * -(-count // self.batch)


@dataclass(frozen=True)
class Batch:
    """What a step reads: images in the space networks see, token ids, who says the same, and numbers in the data."""

    images: Tensor
    ids: Tensor
    groups: Tensor
    indices: Tensor


class Pairs:
    """The pairs of a set in the order of a loop.

    Args:
        run: the run.
        data: images, with captions or with classes.
        tokenizer: of the texts.
        train: how they are shown.
        context: tokens of a text at most.
        template: what is said of a class whose images have no captions.
    """

    def __init__(
        self,
        run: Run,
        data: Images,
        tokenizer: Tokenizer,
        train: PairTraining,
        *,
        context: int,
        template: str,
    ) -> None:
        captions = captions_of(data, template)
        self.run, self.data, self.train = run, data, train
        self.ids, self.groups = tokenizer.ids(captions, context), groups_of(captions)
        plan = order_of(data, min(train.batch, len(data)), int(run.rng("order").initial_seed()))
        self._indices, self._key = plan.indices, run.key("views")

    def batch(self, step: int) -> Batch:
        """Return the pairs of a step."""
        indices = self._indices(step)
        if self.train.views == PLAIN:
            images = self.data.batch(indices)[0]
        else:
            images = self.train.views.images(self.data, self._key, indices, torch.full_like(indices, step))
        device = self.run.device
        return Batch(images.to(device), self.ids[indices].to(device), self.groups[indices].to(device), indices)


def vectors(
    run: Run, module: DualEncoder, batch: Batch, gates: tuple[TowerGates, TowerGates] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the vectors of a batch's images and texts, each process's part made there; a loss of them is joined."""
    rows = run.shard(len(batch.images))
    image_gates, text_gates = gates or (None, None)
    images = module.images(batch.images[rows], image_gates)
    texts = module.texts(batch.ids[rows], text_gates)
    return run.gather(images), run.gather(texts)


def learn(
    run: Run, module: DualEncoder, train: PairTraining, loss_of: Callable[[int], Tensor], *, name: str, steps: int
) -> None:
    """Train a dual encoder in place, in a loop of its own; `loss_of` gives the loss of a step over the whole batch."""
    schedule = Cosine(warmup=min(train.warmup, steps // 5))
    learner = run.learner(name, module, train.optimizer, schedule=schedule, steps=steps, clip=train.clip)
    for step in run.loop(name, steps):
        module.train()
        run.backward({"pairs": loss_of(step)}, learner, joined=True)
        learner.step()
        module.constrain()

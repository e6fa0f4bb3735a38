"""MAE: guess the patches that an encoder never saw, from the few that it did (arXiv 2111.06377)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.artifacts.autoencoder import Autoencoder, Encoder
from attar.data import Images
from attar.methods.model.masked.masks import random_masking
from attar.methods.model.masked.pretraining import Pretraining
from attar.methods.model.masked.targets import Pixels, Target
from attar.nets.initialise import seeded
from attar.nets.masked import Decoder, MaskedAutoencoder, Masking, fresh_autoencoder
from attar.nets.token_specs import ViT
from attar.run import Optimizer, Run
from attar.spec import method, to_json
from attar.train.objective import Term
from attar.train.regression import Shape


@method
class MaskedAutoencoding:
    """Train a vision transformer without labels to guess hidden patches (He et al. 2022, arXiv 2111.06377).

    The encoder reads the patches that are left, a shallow decoder puts a learned token at every other place and guesses
    what is there: L = mean over hidden patches of the mean square error. What comes out is the encoder and its decoder;
    `fine-tuning` turns the encoder into a classifier. Labels are not read. Defaults are ViT-B's on ImageNet.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "net": {"patch": 4, "width": 64, "depth": 4, "heads": 4},
            "decoder": {"width": 64, "depth": 2, "heads": 4},
            "train": {"steps": 600, "batch": 128, "optimizer": {"lr": 1e-3}, "views": {"scale": [0.5, 1.0]}},
        }
    }

    net: ViT = ViT(patch=16, width=768, depth=12, heads=12)  # the encoder
    decoder: Decoder = Decoder()
    hidden: float = Field(0.75, gt=0, lt=1)  # share of the patches that the encoder does not see
    block: int = Field(1, ge=1)  # patches a side of the squares that are hidden together
    target: Target = Pixels()  # what is guessed
    train: Pretraining = Pretraining()

    def optimizer(self, count: int) -> Optimizer:
        """Return the optimizer for `count` images."""
        return self.train.optimizer

    def build(self, model: MaskedAutoencoder, data: Images, teacher: Any) -> nn.Module:
        """Return what the terms need for training alone; its parameters join the optimizer."""
        return nn.Module()

    def maskings(self, count: int, side: int, rng: torch.Generator) -> list[Masking]:
        """Return the maskings of a step, one for each view of its images."""
        return [random_masking(count, side, self.hidden, rng, block=self.block)]

    def terms(
        self, model: MaskedAutoencoder, state: Any, images: Tensor, masking: Masking, target: Tensor
    ) -> Iterator[Term]:
        """Yield the terms of a step; `target` `[n, places, outputs]`."""
        yield Term("pixels", self.reconstruction(model(images, masking), target, masking))

    def reconstruction(self, guesses: Tensor, target: Tensor, masking: Masking) -> Tensor:
        """Return the mean over hidden patches of the mean square error."""
        return losses.hint_distance(guesses[masking.hidden], target[masking.hidden])

    def __call__(self, run: Run, *, data: Images) -> Autoencoder:
        """Train encoder and decoder."""
        return self.pretrained(run, data)

    def pretrained(self, run: Run, data: Images, teacher: Any = None) -> Autoencoder:
        """Train encoder and decoder with what `build` adds, and return them without it."""
        model = self.fresh(run, data)
        encoder = model.encoder
        with seeded(run.rng("state")):
            state = self.build(model, data, teacher).to(run.device)
        whole = nn.ModuleDict({"model": model, "state": state})
        steps, batch = self.train.total(len(data)), self.train.batches(run, data)
        learner = run.learner(
            "autoencoder", whole, self.optimizer(len(data)), schedule=self.train.schedule(len(data)), steps=steps,
            clip=self.train.clip,
        )  # fmt: skip
        for step in run.loop("pretrain", steps):
            whole.train()
            part = batch(step)
            drawn = self.maskings(part.count, encoder.patches.side, run.rng("mask", step))
            stacked = joined([one.rows(part.rows) for one in drawn]).to(run.device)
            target = self.target.of(part.images, self.net, data).repeat(len(drawn), 1, 1)
            found = self.terms(model, state, part.images.repeat(len(drawn), 1, 1, 1), stacked, target)
            learner.update(part.share(found))
        encoder.requires_grad_(True)  # positions learn with the rest when it is fine-tuned
        made = Encoder(encoder.eval(), self.net, data.channels, data.size)
        return Autoencoder.of(made, model.decoder.eval(), self.decoder, to_json(self.target))

    def fresh(self, run: Run, data: Images) -> MaskedAutoencoder:
        """Return an encoder and a decoder that know nothing."""
        outputs = self.target.outputs(self.net, data.channels)
        shape = Shape(data.channels, data.size, 1)
        return fresh_autoencoder(self.net, self.decoder, outputs, shape, run.rng("autoencoder")).to(run.device)


def joined(maskings: list[Masking]) -> Masking:
    """Return the maskings of several views as those of one batch, view behind view."""
    return Masking(torch.cat([one.kept for one in maskings]), torch.cat([one.restore for one in maskings]))

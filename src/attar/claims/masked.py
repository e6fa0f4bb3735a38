"""What the claims of masked autoencoders share: a teacher with its decoder, small students, and probes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from attar.artifacts.autoencoder import Autoencoder
from attar.claims.claim import Trial
from attar.claims.taught_once import TaughtOnce
from attar.data import Images
from attar.data.soft_labels.views import Views
from attar.data.sources import Splits
from attar.methods.model.mae import MaskedAutoencoding
from attar.methods.model.masked.pretraining import Pretraining
from attar.nets.masked import Decoder, MeanFeatures
from attar.nets.token_specs import ViT
from attar.run import AdamW, Run
from attar.train.probe import neighbour_accuracy
from attar.train.transfer import probed

UNLABELLED = 10_000  # images that students are pre-trained on
TAUGHT = 20_000  # images that the teacher is pre-trained on
LABELLED = 200  # images of each class that probes and fine-tuning see
VIEWS = Views(scale=(0.5, 1.0))


class MaskedClaim(TaughtOnce):
    """An arm trains a small transformer on images without labels, 49 patches each, and judges what it has learned.

    Three copies of the teacher, each with images of its own, are dealt to the seeds in turn; a seed draws the images of
    the students, initial weights, masks and the labelled images. All arms of a seed share these.
    """

    net: ClassVar[ViT] = ViT(patch=4, width=64, depth=4, heads=4)
    decoder: ClassVar[Decoder] = Decoder(width=32, depth=2, heads=2)
    teacher_net: ClassVar[ViT] = ViT(patch=4, width=96, depth=6, heads=6)
    teacher_decoder: ClassVar[Decoder] = Decoder(width=48, depth=2, heads=4)
    steps: ClassVar = 312  # of 64 images: two passes
    teacher_steps: ClassVar = 1000
    batch: ClassVar = 64
    copies = 3
    currency = "updates"
    fixed: ClassVar[Sequence[str]] = (
        "the test set",
        "three copies of the teacher, each with the 20,000 images it has seen",
    )
    source = "fashion-mnist"
    quick_source = "fashion-mnist-mini"
    uses = (
        "attar.claims.masked",
        "attar.methods.model.masked.masks",
        "attar.methods.model.masked.pretraining",
        "attar.methods.model.masked.targets",
        "attar.nets.masked",
        "attar.nets.tokens",
    )

    def images(self, run: Run, data: Images) -> Images:
        """Return the images that the students of a seed are pre-trained on; nothing reads their labels."""
        count = min(UNLABELLED, 64 if self.quick else len(data))
        return data.subset(torch.randperm(len(data), generator=run.rng("unlabelled"))[:count])

    def training(self, trial: Trial, *, share: float = 1.0, **changes: Any) -> Pretraining:
        """Return how a student is pre-trained, with the learning rate of a trial, for a share of the steps."""
        steps = 3 if self.quick else round(self.steps * share)
        fields: dict[str, Any] = {"steps": steps, "batch": 16 if self.quick else self.batch, "views": VIEWS}
        optimizer = AdamW(lr=trial.get("lr", 1e-3), beta2=0.95, weight_decay=0.05, decays="weights")
        return Pretraining(optimizer=optimizer, warmup_epochs=0.5, **{**fields, **changes})

    def seen(self, run: Run) -> Images:
        """Return the images that the teachers of a copy see."""
        data = self.taught()
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(run.copy))
        return data.subset(order[: min(TAUGHT, 64 if self.quick else len(data))])

    def teacher(self, run: Run) -> Autoencoder:
        """Return the teacher with its decoder, from a stage that arms, seeds, phases and claims share."""
        method = MaskedAutoencoding(
            net=self.teacher_net,
            decoder=self.teacher_decoder,
            train=self.training({}, share=self.teacher_steps / self.steps),
        )
        made: Autoencoder = run.stage("teacher", method, data=self.seen(run))
        passes = (method.train.steps or 1) * method.train.batch
        self.meter.add(forward=passes, backward=passes)
        return made

    def count(self, method: MaskedAutoencoding, *, views: int = 1, taught: bool = False) -> None:
        """Count what pre-training spends; a teacher that is asked passes every image forward once more."""
        updates = method.train.steps or 1
        seen = updates * method.train.batch * views
        asked = seen if taught else 0
        self.meter.add(updates=updates, examples=seen, teacher_calls=asked, forward=seen + asked, backward=seen)

    def labelled(self, rng: torch.Generator, data: Images, *, share: float = 1.0) -> Images:
        """Return equally many labelled images of each class, or a share of that number."""
        each = min(4 if self.quick else round(share * LABELLED), *(len(members) for members in data.by_class))
        return data.subset(data.choose_per_class(each, rng))

    def judge(self, run: Run, splits: Splits, encoder: nn.Module) -> dict[str, float]:
        """Return the test accuracy of logistic regression on frozen features; in the verdict also of 20 neighbours."""
        few = self.labelled(run.rng("labelled"), splits.train)
        features: Any = MeanFeatures(encoder).eval()
        test = splits.test.subset(torch.arange(100)) if self.quick else splits.test
        self.meter.add(forward=len(few) + len(test))
        found = {"accuracy": probed(features, few, test)}
        if self.phase != "tuning":
            found["neighbours"] = neighbour_accuracy(features, few, test)
        return found

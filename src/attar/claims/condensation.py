"""What the claims of condensation share: sets of a few images a class, judged by fresh small networks."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.claims.claim import Claim, Trial
from attar.data import Images
from attar.data.sources import Splits
from attar.nets import ConvNet
from attar.run import SGD, Plan, Run
from attar.train.evaluation import Protocol, evaluate
from attar.train.training import TensorSource, Training

NET = ConvNet(depth=2, width=32)  # of the F14 profile, for distilling and for judging
EPOCHS = {"none": 300}  # the field's: 300 epochs without augmentation, 1000 with
AUGMENTS = ("none", "dsa", "dsa-noflip")  # that the student may be trained with, chosen on validation


class CondensationClaim(Claim):
    """An arm makes a few images a class; `networks` fresh networks trained on them are scored and averaged."""

    networks = 3

    def judge(self, run: Run, splits: Splits, images: Tensor, labels: Tensor, trial: Trial) -> dict[str, float]:
        """Return the mean test accuracy of fresh networks trained on `images`, and count the stored bytes.

        Every image counts as float32 numbers in every arm: images pooled to 14 pixels are floats, real or not.
        """
        self.meter.add(stored_bytes=images.numel() * 4 + labels.numel() * 8)
        augment = trial.get("augment", "dsa")
        optimizer = SGD(lr=trial.get("student_lr", 0.01), momentum=0.9, weight_decay=5e-4)
        epochs = 3 if self.quick else EPOCHS.get(augment, 1000)
        training = Training(epochs=epochs, optimizer=optimizer, augment=augment)
        networks = 1 if self.quick else self.networks
        protocol = Protocol(net=NET, networks=networks, training=training)
        source = TensorSource(images, labels)
        arms = {"set": lambda index: source}
        row = evaluate(arms, splits.test, protocol, seed=run.seed, plan=Plan(threads=1, workers=1))[0]
        return {"accuracy": row["accuracy"], "network_std": row["accuracy_std"]}


def random_images(run: Run, data: Images, ipc: int) -> tuple[Tensor, Tensor]:
    """Return `ipc` random real images of every class, in the space networks see, and their labels."""
    indices = data.choose_per_class(ipc, run.rng("random images"))
    return data.normalised(indices), data.labels[indices]


def mean_images(data: Images) -> tuple[Tensor, Tensor]:
    """Return the mean image of every class, in the space networks see: the cheap trick at one image a class."""
    means = torch.stack([data.normalised(members).mean(0) for members in data.by_class])
    return means, torch.arange(data.num_classes)

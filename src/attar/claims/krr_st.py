"""The claim of KRR-ST: what is learned from distilled pairs transfers better than from real pairs of a teacher."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from attar import nets
from attar.artifacts import Student
from attar.claims.claim import Claim, Contrast, Precondition, Trial
from attar.data import Images
from attar.data.sources import Splits
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.kmeans import k_means, nearest_of
from attar.methods.data.krr_st import SelfSupervisedTransfer, unlabelled
from attar.methods.data.ridge.pool import Pool
from attar.methods.data.ridge.teacher import SelfSupervision
from attar.nets import ConvNet, Net
from attar.nets.network import Network
from attar.run import SGD, Adam, AdamW, Constant, Cosine, Run
from attar.train.regression import TargetSource
from attar.train.training import Stream, TensorSource, Training, fit, predict
from attar.train.transfer import finetuned, pretrained, probed

NET: Net = ConvNet(depth=2, width=32, norm="batch")  # of the pool, and the one that transfers
SOURCE, TARGET = range(5), range(5, 10)  # classes of Fashion-MNIST: distilled without labels, and transferred to
DIMENSIONS = 64
SHOTS = 5  # labelled images of each class of the target
MANY = 3000  # real pairs that say how much there is to gain
PROBE = "20 pairs, linear probe with 5 labels a class"


class SelfSupervisedTransferClaim(Claim):
    """KRR-ST against real images with the same teacher's features, drawn at random or nearest to k-means centres.

    Five classes of Fashion-MNIST are distilled without labels into 20 pairs; a network trained on these is probed on
    the other five classes with 5 labels of each. The rate of that training is tuned in every arm. 3,000 real pairs say
    whether there is anything to gain. DM, which is printed, sees the labels of the distilled classes. The paper's crops
    and flips are a choice: few pairs that must predict them may predict plain images worse.
    """

    id = "krr-st"
    title = "Self-Supervised Dataset Distillation for Transfer Learning"
    says = "better than random and k-means subsets of CIFAR-100 on every target set fine-tuned on (arXiv 2310.06511)"
    origin = (
        "pilot of seeds 100 and 101 with 50 pairs and 20 labels: probe +0.4 and -0.5 points against random pairs; "
        "3,000 real pairs give 0.7 more than 50; that pairs and labels are fewer, that there has to be room for twice "
        "what counts, that KRR-ST's pairs are learned at a rate of their own, and all pairs at a constant one, was "
        "written down after a first verdict: -0.1 points [-0.4, 0.3] against random pairs, 0.0 [-0.3, 0.2] against "
        "k-means"
    )
    primary = (
        Contrast(method="krr-st", baseline="random pairs", at=PROBE, worst=0.2),
        Contrast(method="krr-st", baseline="k-means pairs", at=PROBE, worst=0.2),
    )
    secondary = (
        Contrast(method="krr-st", baseline="scratch", at="linear probe of an untrained network", worst=0.2),
        Contrast(method="krr-st", baseline="dm, labelled", at="20 images that DM made with labels", worst=0.2),
        Contrast(
            method="krr-st", baseline="random pairs", metric="finetuned accuracy", at="20 pairs, fine-tuned", worst=0.2
        ),
    )
    precondition = Precondition(
        says="3,000 real pairs beat 20 random ones by a point",
        contrast=Contrast(method="many pairs", baseline="random pairs", at=PROBE, worst=0.2),
        at_least=0.01,
    )
    expects = 0.01
    delta = 0.005
    seeds = 12
    grids: ClassVar = {
        "krr-st": {"augment": ["none", "crop-and-flip"], "lr": [0.03, 0.1, 0.3]},
        "random pairs": {"lr": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
        "k-means pairs": {"lr": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
        "many pairs": {"lr": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
        "scratch": {"decay": [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]},
        "dm, labelled": {"pixel_lr": [0.3, 1.0, 3.0], "lr": [0.03, 0.1]},
    }
    limits: ClassVar = {"decay": (0.01, 100.0), "lr": (0.001, 3.0)}
    currency = "stored_bytes"
    fixed = (
        "the test images of the target classes",
        "the training set, but for the validation part in tuning",
        "which classes are distilled",
        "three copies of the teacher",
    )
    methods = ("krr-st", "dm")
    uses = ("attar.train.transfer", "attar.methods.data.kmeans", "attar.methods.data.ridge.teacher")
    trial_seeds = 2
    copies = 3
    images: ClassVar = 20
    steps: ClassVar = 500
    pretraining_steps: ClassVar = 1000
    networks: ClassVar = 2
    draws: ClassVar = 10  # of target labels, for each network
    tunings: ClassVar = 2  # draws that the first network is fine-tuned on as well

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Train networks as the arm does, and return what they know of the target classes."""
        splits = self.splits(run)
        data = only(splits.train, SOURCE)
        target = Splits(only(splits.train, TARGET), only(splits.test, TARGET), splits.note)
        made = None
        if name == "dm, labelled":
            made = self.matched(run, data, seed, trial["pixel_lr"])
        elif name != "scratch":
            made = self.pairs(run, data, name, seed, trial)
        probes, tuned = [], []
        for index in range(1 if self.quick else self.networks):
            network = self.trained(run, made, data, index, trial.get("lr", 0.1))
            for draw in range(2 if self.quick else self.draws):
                few = target.train.subset(target.train.choose_per_class(SHOTS, run.rng("labels", draw)))
                probes.append(probed(network, few, target.test, decay=trial.get("decay", 1.0)))
                if index == 0 and draw < self.tunings:
                    tuned.append(self.finetuned(run, network, few, target.test, draw))
        return {"accuracy": statistics.fmean(probes), "finetuned accuracy": statistics.fmean(tuned)}

    def pairs(self, run: Run, data: Images, name: str, seed: int, trial: Trial) -> TargetSource:
        """Return images with targets: distilled, or real ones with what the teacher says of them."""
        teaching = SelfSupervision(
            net=ConvNet(depth=2, width=32),
            dimensions=DIMENSIONS,
            projector=256,
            training=Training(steps=8 if self.quick else 1000, batch=128, optimizer=Adam(lr=0.003), schedule=Cosine()),
        )
        teacher: Student = run.stage("teacher", teaching, data=data)
        learned = (teaching.training.steps or 1) * 2 * 128
        count = MANY if name == "many pairs" else self.images
        self.meter.add(
            stored_bytes=4 * count * (data.pixels[0].numel() + DIMENSIONS),
            updates=teaching.training.steps or 1,
            forward=learned + count,
            backward=learned,
        )
        if name == "krr-st":
            method = self.method(teaching, trial)
            made = run.stage("distil", method, seed=seed, data=data, teacher=teacher)
            real, fake = method.steps * method.real_batch, method.steps * count
            aged = fake + method.pool.size * method.pool.max_age // 2 * count
            self.meter.add(updates=method.steps, forward=2 * real + fake + aged, backward=fake + aged)
            return TargetSource(made.images, made.targets)
        module = teacher.module.to(run.device)
        if name != "k-means pairs":
            indices = torch.randperm(len(data), generator=run.rng("random pairs"))[:count]
        else:
            told = predict(module, data)
            self.meter.add(forward=len(data))
            indices = nearest_of(told, k_means(told, count, run.rng("k-means pairs")))
        images = unlabelled(data, indices).images
        with torch.no_grad():
            return TargetSource(images, module.eval()(images))

    def method(self, teaching: SelfSupervision, trial: Trial) -> SelfSupervisedTransfer:
        """Return KRR-ST at the size of this check; ages and training of the pool are the paper's."""
        optimizer = SGD(lr=0.1, momentum=0.9, weight_decay=1e-3)
        age = 4 if self.quick else self.pretraining_steps
        return SelfSupervisedTransfer(
            images=self.images,
            steps=3 if self.quick else self.steps,
            optimizer=AdamW(lr=0.01, weight_decay=0),  # the best of 0.003, 0.01 and 0.03 in a first verdict
            real_batch=256,
            augment=trial["augment"],
            net=NET,
            pool=Pool(size=5, max_age=age, optimizer=optimizer, batch=None),
            teaching=teaching,
        )

    def matched(self, run: Run, data: Images, seed: int, pixel_lr: float) -> TensorSource:
        """Return labelled images of the distilled classes that DM made."""
        steps = 3 if self.quick else 300
        dm = DistributionMatching(
            ipc=self.images // data.num_classes,
            steps=steps,
            real_batch=64,
            net=ConvNet(depth=2, width=32),
            optimizer=SGD(lr=pixel_lr, momentum=0.5),
        )
        made = run.stage("dm", dm, seed=seed, data=data)
        self.meter.add(
            stored_bytes=made.images.numel() * 4 + len(made) * 8,
            updates=steps,
            forward=steps * (data.num_classes * 64 + len(made)),
            backward=steps * len(made),
        )
        return TensorSource(made.images, made.labels)

    def trained(self, run: Run, made: TensorSource | None, data: Images, index: int, lr: float) -> Network:
        """Return network `index` after its training on targets, on labels, or none."""
        rng = numbered(run, "network", index)
        steps = 4 if self.quick else self.pretraining_steps
        optimizer = SGD(lr=lr, momentum=0.9, weight_decay=1e-3)
        training = Training(steps=steps, batch=100, optimizer=optimizer, schedule=Constant())
        if made is not None:
            seen = steps * min(training.batch, len(made))
            self.meter.add(updates=steps, examples=seen, forward=seen, backward=seen)
        if made is None or isinstance(made, TargetSource):
            return pretrained(NET, made, data, training, rng)
        network = nets.fresh(NET, data, rng("network"), device=run.device)
        fit(network, made, training, rng)
        return network.eval()

    def finetuned(self, run: Run, network: Network, few: Images, test: Images, draw: int) -> float:
        """Return the test accuracy after fine-tuning on the labelled images of the target classes."""
        steps = 3 if self.quick else 200
        optimizer = SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)
        training = Training(steps=steps, batch=100, optimizer=optimizer, schedule=Cosine(), augment="crop-and-flip")
        seen = steps * min(training.batch, len(few))
        self.meter.add(updates=steps, examples=seen, forward=seen, backward=seen)
        return finetuned(network, NET, few, test, training=training, rng=numbered(run, "fine-tuning", draw))


def only(images: Images, classes: Sequence[int]) -> Images:
    """Return the images of some classes alone, numbered anew in this order."""
    numbers = torch.full((images.num_classes,), -1)
    numbers[list(classes)] = torch.arange(len(classes))
    kept: Tensor = (numbers[images.labels] >= 0).nonzero().flatten()
    chosen = images.subset(kept)
    names = tuple(images.classes[label] for label in classes)
    return dataclasses.replace(chosen, labels=numbers[chosen.labels], classes=names)


def numbered(run: Run, name: str, number: int) -> Stream:
    """Return the run's streams for one of several networks or draws."""

    def rng(stream: str, *counters: Any) -> torch.Generator:
        return run.rng(f"{name} {stream}", number, *counters)

    return rng

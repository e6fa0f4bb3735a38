"""FerKD: stored soft labels of crops, mended where the teacher was unsure, and mixed within one image."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar import nets
from attar.artifacts import Student
from attar.artifacts.soft_labels import SoftLabels
from attar.data import Images
from attar.data.plans import order_of
from attar.data.soft_labels import SoftLabelSource, Views
from attar.data.soft_labels.views import cutmix
from attar.errors import RecipeError
from attar.nets import ConvNet, Net
from attar.run import SGD, Cosine, Run
from attar.spec import method
from attar.train.label import LabelSamples
from attar.train.mixing import beta_quantile, rectangle
from attar.train.objective import StudentTraining
from attar.train.teacher import Teacher, Teaching
from attar.train.training import shared_loss

_TRAIN = StudentTraining(
    epochs=300,
    batch=1024,
    optimizer=SGD(lr=0.2, momentum=0.9, weight_decay=1e-4),  # 0.1 for every 512 crops
    schedule=Cosine(),
    augment="none",
)


@method
class CalibratedLabels:
    """Learn stored labels of crops, calibrated by region (Shen 2023, arXiv 2312.17473; storage of arXiv 2112.01528).

    Each image gives several of its stored crops to a batch. L = CE with the stored probabilities; where the teacher
    is unsure of a crop, which then shows the surroundings more than the object, with the softened label instead.
    SelfMix pastes a rectangle of another crop of the same image, with the labels' mixture by area. Thresholds and
    softening are not in the paper's text or code. No teacher is asked while the student trains.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {
            "student": {"depth": 2, "width": 16, "norm": "batch"},
            "teaching": {"epochs": 3},
            "train": {"steps": 700, "batch": 64, "optimizer": {"lr": 0.05}},
            "passes": 8,
        }
    }

    student: Net = ConvNet(depth=3, width=32, norm="batch")  # the network to be trained
    train: StudentTraining = _TRAIN  # a batch counts crops
    teaching: Teaching = Teaching()  # of a teacher that is named as a network
    views: Views = Views(scale=(0.08, 1.0))  # the crops that are labelled
    passes: int = Field(100, ge=2)  # crops stored of each image; 500 in FKD, of which few are used
    top_k: int | None = Field(5, ge=1)  # probabilities stored, the rest spread evenly; none: all
    crops: int = Field(4, ge=1)  # of an image in a batch
    low: float = Field(0.3, ge=0, le=1)  # below this confidence a crop gets the softened label; 0: never (FKD)
    high: float = Field(1.0, gt=0, le=1)  # above it a crop is left out; 1: never
    softening: float = Field(0.1, ge=0, le=1)  # of the label, towards uniform
    confidence: Literal["largest", "label"] = "largest"  # the teacher's largest probability, or the label's
    relabel: Literal["unsure", "random"] = "unsure"  # random: as many, drawn from all, the control
    mix: Literal["selfmix", "cutmix", "none"] = "selfmix"  # with a crop of the same image, or of another
    mix_alpha: float = Field(1.0, gt=0)  # area that stays ~ Beta(a, a)
    mix_probability: float = Field(0.5, ge=0, le=1)  # chance that a batch is mixed

    def __call__(self, run: Run, *, data: Images, teacher: Teacher) -> Student:
        """Label the data if it is yet to be, and train the student on the labels.

        Raises:
            RecipeError: a batch, or the store, has no room for the crops of an image, or mixed crops are to be mended.
        """
        told = Teacher.of(teacher)
        shown = self.views if told.labels is None else told.labels.store.head.views
        if self.low and shown is not None and shown.mix != "none":
            raise RecipeError(
                f"crops that are labelled behind {shown.mix} have no one label to be mended with; set low=0, or take "
                "crops with views.mix=none and let mix= mix them"
            )
        labels = self.stored(run, data, told)
        source = labels.source_of(data)
        views = len(source) // len(data)
        if self.crops > min(views, self.train.batch) or (self.mix == "selfmix" and self.crops < 2):
            raise RecipeError(
                f"{self.crops} crops of an image were asked for in a batch of {self.train.batch}, {views} are stored"
                f"{' and mix=selfmix needs two' if self.mix == 'selfmix' else ''}; set crops="
            )
        module = nets.fresh(self.student, data, run.rng("student"), device=run.device)
        steps = self.train.total(len(data))
        learner = run.learner(
            "student", module, self.train.optimizer, schedule=self.train, steps=steps, clip=self.train.clip
        )
        plan = order_of(data, min(self.train.batch // self.crops, len(data)), int(run.rng("order").initial_seed()))
        module.train()
        for step in run.loop("distil", steps):
            images, targets = self.lesson(source, data, plan.indices(step), views, run.rng("lesson", step))
            learner.update(shared_loss(run, module, images, targets))
        return Student(module.eval(), self.student, data.channels, data.size, data.classes)

    def stored(self, run: Run, data: Images, teacher: Teacher) -> SoftLabels:
        """Return the labels that the teacher is, or those that it gives to crops, in a stage that runs share."""
        if teacher.labels is not None:
            return teacher.labels
        module = teacher.ready(run, data, self.teaching)
        told = Student(module, None, data.channels, data.size, data.classes)
        kept = None if self.top_k is None else min(self.top_k, data.num_classes)
        labelling = LabelSamples(passes=self.passes, views=self.views, top_k=kept)
        labels: SoftLabels = run.stage("soft labels", labelling, teacher=told, data=data)
        return labels

    def lesson(
        self, source: SoftLabelSource, data: Any, samples: Tensor, views: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return crops `[images · crops, C, S, S]` of the samples, those of an image in a row, and their targets."""
        chosen = torch.rand(len(samples), views, generator=rng).argsort(1)[:, : self.crops].flatten()
        repeated = samples.repeat_interleave(self.crops)
        images, told = source.batch(source.store.find(repeated, chosen))
        targets, kept = self.calibrated(told, data.labels[repeated].to(told.device), rng)
        images, targets = self.mixed(images, targets, rng)
        return (images[kept], targets[kept]) if kept.any() else (images, targets)

    def calibrated(self, told: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the targets `[n, classes]` and which crops are learned from `[n]`."""
        sure = told.max(1).values if self.confidence == "largest" else told.gather(1, labels[:, None])[:, 0]
        mended = sure < self.low
        if self.relabel == "random":
            order = torch.rand(len(told), generator=rng).argsort().to(told.device)
            mended = order < int(mended.sum())
        kept = (sure <= self.high) | mended
        soft = torch.nn.functional.one_hot(labels, told.shape[1]) * (1 - self.softening)
        return torch.where(mended[:, None], soft + self.softening / told.shape[1], told), kept

    def mixed(self, images: Tensor, targets: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Paste one rectangle of each crop's neighbour: the next of the same image, or that of the next image."""
        chance, u, across, down = torch.rand(4, generator=rng, dtype=torch.double).tolist()
        if self.mix == "none" or chance >= self.mix_probability:
            return images, targets
        rows = torch.arange(len(images), device=images.device).reshape(-1, self.crops)
        partner = rows.roll(-1, 1 if self.mix == "selfmix" else 0).flatten()
        size = images.shape[-1]
        box = rectangle(beta_quantile(u, self.mix_alpha), size, across, down)
        kept = 1 - box[2] * box[3] / size**2
        pasted = cutmix(images, images[partner], torch.tensor([box]).expand(len(images), 4))
        return pasted, torch.lerp(targets[partner], targets, kept)

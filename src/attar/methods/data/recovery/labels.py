"""Labels that a teacher gives to a small set: once, or online to every view; as something to train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.artifacts import DistilledSet
from attar.data import Images
from attar.data.soft_labels import Views
from attar.errors import RecipeError
from attar.train.training import logits_of

Labelling = Literal["hard", "static", "dynamic"]

PLAIN = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)  # images as they are


def as_images(synthetic: DistilledSet, like: Images) -> Images:
    """Return a small set as labelled images, so that it can be shown in views and labelled; labels become hard."""
    pixels = like.denormalise(synthetic.images.detach())
    return dataclasses.replace(like, pixels=pixels, labels=synthetic.hard_labels(), source=f"set from {like.source}")


@torch.no_grad()
def static_logits(teachers: Sequence[nn.Module], images: Images, chunk: int = 256) -> Tensor:
    """Return the mean logits `[N, classes]` of teachers in evaluation mode, of every image as it is."""
    parts = torch.arange(len(images)).split(chunk)
    each = [torch.cat([logits_of(teacher, images.normalised(part)) for part in parts]) for teacher in teachers]
    return torch.stack(each).mean(0)


class LabelledViews:
    """Views of a small set with labels: `passes` views of every image are one epoch. A `Labelled` for `fit`.

    Rows are in the order (view, image), as in a soft-label store, and replay exactly. Train with `augment="none"`: the
    views are the augmentation. Labels are probabilities `[n, classes]`:

    - "hard": the image's class.
    - "static": softmax(z / T), z the mean logits of the teachers, read once from the image as it is (arXiv 2408.06927).
    - "dynamic": softmax(z / T), z their mean logits of the very view.

    Where views are mixed, classes and static logits are mixed linearly by the shares of the pixels.

    Args:
        images: the set, as `as_images` gives it.
        labelling: one of the above.
        views: what the student is shown.
        key: seed of all views, in [0, 2⁶³).
        passes: views of every image.
        teachers: frozen networks in evaluation mode; hard labels need none.
        temperature: T, the one that the student is trained with as well (`TemperedLoss`).
        logits: `[N, classes]` of static labels, where they are known; no teacher is asked then.

    Raises:
        RecipeError: soft labels without a teacher.
    """

    def __init__(
        self,
        images: Images,
        labelling: Labelling,
        *,
        views: Views,
        key: int,
        passes: int,
        teachers: Sequence[nn.Module] = (),
        temperature: float = 1.0,
        logits: Tensor | None = None,
    ) -> None:
        if labelling != "hard" and not teachers and (logits is None or labelling != "static"):
            raise RecipeError(f"labels='{labelling}' are given by a teacher; hand one over, or train with hard labels")
        self.images, self.labelling, self.views, self.key, self.passes = images, labelling, views, key, passes
        self.teachers, self.temperature = list(teachers), temperature
        self.table = functional.one_hot(images.labels, images.num_classes).float()
        if labelling == "static":
            self.table = static_logits(teachers, images) if logits is None else logits

    def __len__(self) -> int:
        return self.passes * len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return views `[n, C, H, W]` in the space networks see and probabilities `[n, classes]` of rows `[n]`."""
        samples, views = indices % len(self.images), indices // len(self.images)
        shown = self.views.images(self.images, self.key, samples, views)
        if self.labelling == "dynamic":
            with torch.no_grad():
                logits = torch.stack([logits_of(teacher, shown) for teacher in self.teachers]).mean(0)
            return shown, (logits / self.temperature).softmax(1)
        mixed = self.mixed(samples, views)
        return shown, mixed if self.labelling == "hard" else (mixed / self.temperature).softmax(1)

    def mixed(self, samples: Tensor, views: Tensor) -> Tensor:
        """Return rows of the table `[n, classes]`, mixed as the pixels of these views are."""
        size = self.images.size
        drawn = self.views.draw(self.key, samples, views, count=len(self.images), size=size)
        share = drawn.share
        if self.views.mix == "cutmix":  # the rectangle may have been clipped at the border
            share = 1 - drawn.paste[:, 2:].prod(1).float() / size**2
        share = share[:, None].to(self.table)
        table = self.table
        return share * table[samples.to(table.device)] + (1 - share) * table[drawn.partner.to(table.device)]


class TaughtLoss:
    """KL(p ‖ softmax(z / T)) with p = softmax(teachers' mean logits of the very images / T): a loss for `fit`.

    Labels are left aside, so that it goes with whatever a student is shown, however it was augmented or mixed.

    Args:
        teachers: networks; they are set to evaluation mode, and frozen.
        temperature: T.
    """

    def __init__(self, teachers: Sequence[nn.Module], temperature: float) -> None:
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.temperature, self.tempered = temperature, TemperedLoss(temperature)

    def __call__(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a network on images `[n, C, H, W]`."""
        with torch.no_grad():
            told = torch.stack([logits_of(teacher, images) for teacher in self.teachers]).mean(0)
        return self.tempered(module, images, (told / self.temperature).softmax(1))


class TemperedLoss:
    """KL(p ‖ softmax(z / T)), the mean over a batch, without the factor T²: a loss for `fit`.

    p are labels `[n, classes]`, made with the same temperature T (arXiv 2306.13092, section 3.3, as the official code
    has it: its gradient shrinks as 1 / T, so rates do not carry over to another temperature).
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a network on images `[n, C, H, W]` with probabilities `[n, classes]`."""
        log_student = (logits_of(module, images) / self.temperature).log_softmax(1)
        return (torch.xlogy(labels, labels) - labels * log_student).sum(1).mean()

"""SSLD: a teacher's word alone, also on unlabelled images that were mined for each class (arXiv 2103.05959)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses, nets
from attar.artifacts import Student
from attar.data import Images
from attar.errors import DataError, RecipeError
from attar.run import SGD, Cosine, Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, StudentTraining, Term
from attar.train.taps import Seen
from attar.train.teacher import Teacher
from attar.train.training import predict

LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "symmetric-kl": losses.symmetric_kl,
    "kl": losses.kl_divergence,
    "jensen-shannon": losses.jensen_shannon,
}


@method
class LabelFreeDistillation(Objective):
    """Learn from what a teacher says of images without labels, mined from a pool, then of one's own (Cui et al. 2021).

    Loop `distil`: the data and, of `pool`, the images that are among the `per_class` most probable ones of a class.
    Loop `fine-tune`: the data alone, at a smaller learning rate, which returns to its distribution. Both minimise
    ½ [KL(p_t ‖ p_s) + KL(p_s ‖ p_t)] at T = 1, which the paper calls a Jensen-Shannon divergence; labels are not used.
    Images of the pool that show an image of `held_out`, such as the test set's, are left out. Source: arXiv 2103.05959.
    """

    version: ClassVar = 2
    presets: ClassVar = {
        "small": {
            **Objective.presets["small"],
            "per_class": 500,
            "warmup_epochs": 0,
            "finetune_steps": 100,
            "train": {
                **Objective.presets["small"]["train"],
                "batch": 64,
                "optimizer": {"lr": 0.05, "weight_decay": 5e-4},
            },
        }
    }

    train: StudentTraining = StudentTraining(
        epochs=360, batch=1024, optimizer=SGD(lr=0.4, momentum=0.9, weight_decay=7e-5), schedule=Cosine()
    )  # ResNet50-vd's; MobileNetV3 takes lr 3.66 at batch 5760 and weight decay 1e-5
    warmup_epochs: float = Field(5, ge=0)  # passes over which the learning rate grows, where the schedule is a cosine
    hard: float = Field(0.0, ge=0)  # weight of the cross-entropy with the labels; not with a pool, which has none
    loss: Literal["symmetric-kl", "kl", "jensen-shannon", "ce"] = "symmetric-kl"  # ce: with the teacher's probabilities
    temperature: float = Field(1.0, gt=0)
    per_class: int | None = Field(4000, ge=1)  # images of the pool kept for each class, at most; none: all of them
    finetune_epochs: float = Field(30, ge=0)  # passes over the data alone, 30 to 60; 0: no second loop
    finetune_steps: int | None = Field(None, ge=1)  # instead of passes
    finetune_lr: float = Field(0.01, gt=0)  # share of the learning rate in the second loop
    likeness: float = Field(0.95, gt=0, le=1)  # correlation of pixels from which two images show the same

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the divergence."""
        if self.loss == "ce":
            target = (teacher.logits / self.temperature).softmax(1)
            yield Term("ssld", losses.soft_cross_entropy(student.logits / self.temperature, target))
        else:
            yield Term("ssld", LOSSES[self.loss](student.logits, teacher.logits, self.temperature))

    def __call__(
        self,
        run: Run,
        *,
        data: Images,
        teacher: Teacher,
        pool: Images | None = None,
        scorer: Teacher | None = None,
        held_out: Images | None = None,
    ) -> Student:
        """Choose from the pool, by `scorer` if one is given and else by the teacher, and train in both loops.

        Raises:
            RecipeError: there is no pool to choose from, or labels count and the pool has none.
        """
        if pool is None and not (scorer is None and held_out is None):
            raise RecipeError("scorer and held_out say what is taken of a pool, and there is none; add pool=URI")
        told: Any = Teacher.of(teacher)
        first = data
        if pool is not None:
            if self.hard:
                raise RecipeError("the pool has no labels, so there is nothing for 'hard' to weigh; leave it at 0")
            told = _network(told, run, data, self)
            judge = told if scorer is None else _network(Teacher.of(scorer), run, data, self)
            first = joined(data, self.mined(judge, data, pool, held_out))
        module = nets.fresh(self.student, data, run.rng("student"), device=run.device)
        self._warmed(len(first)).teach(run, module, first, told)
        if self.finetune_epochs or self.finetune_steps:
            self._finetuning(len(data)).teach(run, module, data, told, loop="fine-tune")
        return Student(module.eval(), self.student, data.channels, data.size, data.classes)

    def mined(self, judge: nn.Module, data: Images, pool: Images, held_out: Images | None = None) -> Images:
        """Return the images of the pool that are learned from, judged in the data's space, where they will be learned.

        Raises:
            DataError: the images have different shapes.
        """
        _same_shape(pool, data)
        kept = pool if held_out is None else pool.subset(unlike(pool, held_out, self.likeness))
        if self.per_class is None:
            return kept
        shown = dataclasses.replace(data, pixels=kept.pixels, labels=torch.zeros_like(kept.labels))
        return kept.subset(most_probable(predict(judge, shown).softmax(1), self.per_class))

    def _warmed(self, count: int) -> LabelFreeDistillation:
        """Return the objective with a warm-up in steps over `count` images."""
        if not self.warmup_epochs or not isinstance(self.train.schedule, Cosine):
            return self
        warmup = round(self.warmup_epochs * -(-count // self.train.batch))
        schedule = dataclasses.replace(self.train.schedule, warmup=warmup)
        return dataclasses.replace(self, train=dataclasses.replace(self.train, schedule=schedule))

    def _finetuning(self, count: int) -> LabelFreeDistillation:
        """Return the objective of the second loop over `count` images."""
        steps = self.finetune_steps or max(1, round(self.finetune_epochs * -(-count // self.train.batch)))
        optimizer = dataclasses.replace(self.train.optimizer, lr=self.train.optimizer.lr * self.finetune_lr)
        train = dataclasses.replace(self.train, steps=steps, optimizer=optimizer, schedule=Cosine())
        return dataclasses.replace(self, train=train)


def most_probable(probabilities: Tensor, per_class: int) -> Tensor:
    """Return ascending indices of the samples that are among the `per_class` most probable ones of some class.

    `probabilities` `[n, classes]`. Balanced by class and not by confidence: of each class equally many are chosen, and
    one sample may stand for two.
    """
    chosen = probabilities.topk(min(per_class, len(probabilities)), dim=0).indices
    return chosen.flatten().unique()


def unlike(pool: Images, held_out: Images, likeness: float) -> Tensor:
    """Return ascending indices of the images of the pool whose pixels correlate less than `likeness` with all others'.

    A correlation does not see brightness and contrast. The paper matches SIFT features, which also see crops.

    Raises:
        DataError: the images have different shapes.
    """
    _same_shape(pool, held_out)
    theirs = _standardised(held_out, torch.arange(len(held_out)))
    parts = torch.arange(len(pool)).split(512)
    nearest = [(_standardised(pool, part) @ theirs.T).amax(1) for part in parts]
    return (torch.cat(nearest) < likeness).nonzero().flatten()


def joined(data: Images, more: Images) -> Images:
    """Return the images of both in the space of the first; those of the second get label 0, which nobody reads.

    Raises:
        DataError: the images have different shapes.
    """
    _same_shape(more, data)
    same = data.pixels.dtype == more.pixels.dtype
    pixels = torch.cat([data.pixels, more.pixels] if same else [data.unit(), more.unit()])
    labels = torch.cat([data.labels, torch.zeros_like(more.labels)])
    return dataclasses.replace(data, pixels=pixels, labels=labels)


def _network(teacher: Teacher, run: Run, data: Images, objective: Objective) -> nn.Module:
    if teacher.labels is not None:
        raise RecipeError("stored labels say nothing of a pool; name the teacher itself")
    return teacher.ready(run, data, objective.teaching)


def _same_shape(pool: Images, data: Images) -> None:
    if pool.pixels.shape[1:] != data.pixels.shape[1:]:
        raise DataError(
            f"images of {list(pool.pixels.shape[1:])} and of {list(data.pixels.shape[1:])} cannot be taken together; "
            f"give the pool the shape of the data, such as pool=URI?size={data.size}"
        )


def _standardised(images: Images, indices: Tensor) -> Tensor:
    pixels = images.unit(indices).flatten(1)
    pixels = pixels - pixels.mean(1, keepdim=True)
    return nn.functional.normalize(pixels, dim=1)

"""DeiT-LT: a token of its own learns rare classes from a convolutional teacher (arXiv 2404.02900)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses, nets
from attar.artifacts import Student
from attar.data import Images, policies
from attar.data.policies import Policy
from attar.errors import RecipeError
from attar.losses.long_tail import effective_number_weights, weighted_cross_entropy
from attar.methods.model.distillation_token import token_logits
from attar.methods.model.flat_teacher import FlatTeacher
from attar.nets import Net, ViT
from attar.run import AdamW, Cosine, Run
from attar.spec import method
from attar.train.mixing import Mixing
from attar.train.objective import Batch, Objective, Progress, Setting, StudentTraining, Term
from attar.train.taps import EMBEDDING, Seen
from attar.train.teacher import Teacher
from attar.train.training import logits_of

_PARTS = 8  # of a batch, each with its own two operations of the policy
_TRAIN = StudentTraining(
    epochs=1200, batch=512, optimizer=AdamW(lr=5e-4, weight_decay=0.05), schedule=Cosine(), augment="crop-and-flip"
)


@method
class TailDistillation(Objective):
    """Distil a tail-aware network into a ViT's own token (Rangwani et al. 2024, arXiv 2404.02900).

    L = (1 − α) · CE(z_cls, mixed label) + α · CE(z_dist, argmax z_t), where teacher and student see the same strongly
    augmented and mixed pictures, which are out of the teacher's distribution. Late in the training the second term
    weighs classes by effective numbers, and pictures are no longer mixed, each from a step of its own on. The answer is
    the mean of both heads, and all that remains of them. Without a teacher a flat, tail-aware one is trained first.
    Of DeiT's recipe random erasing and stochastic depth are left out, and pictures are not enlarged for the student.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "student": {"patch": 4, "width": 64, "depth": 4, "heads": 4},
            "train": {"steps": 700, "augment": "none", "schedule": {"kind": "cosine", "warmup": 50}, "batch": 64},
            "flat": FlatTeacher.presets["small"],
        }
    }

    student: Net = ViT(pool="class+distilled")  # DeiT-B with patches of 16 at 224 pixels in the paper
    train: StudentTraining = _TRAIN
    flat: FlatTeacher = FlatTeacher()  # the teacher's training, where none is named
    hard: float = Field(0.0, ge=0)  # weight of the labels for the mean of both heads, which the paper does not have
    share: float = Field(0.5, ge=0, le=1)  # α, of the teacher's term
    mixing: Mixing = Mixing()
    policy: Policy = "randaug"  # two operations, drawn for each eighth of a batch
    answers: Literal["teacher", "labels"] = "teacher"  # labels: nobody teaches, the token learns the larger label
    shown: Literal["same", "clean"] = "same"  # clean: the teacher sees the pictures before policy and mixing, as DeiT
    reweight_from: float = Field(1100 / 1200, ge=0, le=1)  # share of the steps with equal weights; 1: never
    unmix_from: float = Field(1100 / 1200, ge=0, le=1)  # share of the steps with mixed pictures; 1: all, as on ImageNet
    beta: float = Field(0.9999, ge=0, lt=1)  # of the effective numbers

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train the student, and its teacher first where none is named.

        Raises:
            RecipeError: the student has no distillation token.
        """
        if getattr(self.student, "pool", None) != "class+distilled":
            raise RecipeError("deit-lt trains a token of its own: take student=vit student.pool=class+distilled")
        told: Any = None
        if self.answers == "teacher":
            told = run.stage("flat teacher", self.flat, data=data) if teacher is None else teacher
        module = nets.fresh(self.student, data, run.rng("student"), device=run.device)
        self.teach(run, module, data, told)
        return Student(module.eval(), self.student, data.channels, data.size, data.classes)

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return where the two tokens are."""
        return [EMBEDDING], ()

    def build(self, setting: Setting) -> nn.Module:
        """Return what the steps look up, and half the difference of the heads' biases, which is trained.

        Raises:
            RecipeError: the teacher is to see clean pictures, and there are only stored labels.
        """
        if self.shown == "clean" and self.answers == "teacher" and setting.teacher is None:
            raise RecipeError("shown=clean asks a teacher that is there; stored labels belong to the pictures they saw")
        state: Any = nn.Module()
        counts = torch.bincount(setting.data.labels.cpu(), minlength=setting.data.num_classes)
        state.weights = effective_number_weights(counts, self.beta)
        state.data, state.rng = setting.data, setting.run.rng
        state.heads = [setting.student.head]  # in a list: it is trained as the student's
        state.teacher = [setting.teacher]
        state.offset = nn.Parameter(torch.zeros(setting.data.num_classes))
        steps = self.train.total(len(setting.data))
        state.late_from, state.plain_from = self.reweight_from * steps, self.unmix_from * steps
        made: nn.Module = state
        return made

    def views(self, state: Any, batch: Batch, student: nn.Module) -> Batch:
        """Show both the same augmented and mixed pictures."""
        state.clean = batch.images
        images, classes = self._augmented(state, batch), state.data.num_classes
        told = self.mixing.probabilities(batch.labels, classes)
        if batch.step < state.plain_from:
            images, told = self.mixing.mixed(images, batch.labels, classes, state.rng("mixing", batch.step))
        return dataclasses.replace(batch, images=images, labels=told)

    def _augmented(self, state: Any, batch: Batch) -> Tensor:
        """Return the pictures behind the policy, in the space that networks see."""
        if self.policy == "none":
            return batch.images
        pixels = (state.data.denormalise(batch.images) * 255).round().clamp(0, 255)
        rng, made = state.rng("policy", batch.step), []
        for part in pixels.chunk(_PARTS):
            steps = [step for _ in range(2) for step in policies.draw(self.policy, pixels.shape[-1], rng)]
            made.append(policies.apply(part, steps))
        out: Tensor = state.data.normalise(torch.cat(made) / 255)
        return out

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the class token's loss with the labels and the distillation token's with the teacher's answers."""
        own, distilled = token_logits(state.heads[0], student.embedding, state.offset)
        yield Term("class token", losses.soft_cross_entropy(own, batch.labels), 1 - self.share)
        answers = self._answers(state, teacher, batch)
        if batch.step < state.late_from:
            loss = losses.cross_entropy(distilled, answers)
        else:
            loss = weighted_cross_entropy(distilled, answers, state.weights)
        yield Term("distillation token", loss, self.share)

    @torch.no_grad()
    def _answers(self, state: Any, teacher: Seen, batch: Batch) -> Tensor:
        """Return the class that the distillation token learns for each picture, `[n]`."""
        if self.answers == "labels":
            return batch.labels.argmax(1)
        told = logits_of(state.teacher[0], state.clean) if self.shown == "clean" else teacher.logits
        return told.argmax(1)

"""OFA-KD: exits on a student's stages learn a teacher's logits, whatever family it is of (arXiv 2310.19444)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.losses.logits import AdaptiveTarget
from attar.methods.model.exits import exit_of, staged
from attar.run import SGD, Cosine
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, StudentTraining, Term
from attar.train.taps import EMBEDDING, Seen, place

_SMALL: Any = Objective.presets["small"]


@method
class OneForAll(Objective):
    """Distil across families in the space of logits, with exits on the student's stages (Hao et al. 2023, 2310.19444).

    L = hard · CE + weight · [kd · ℓ(z) + exit_weight · Σ_s ℓ(exit_s)], with ℓ(z) = −Σ_k [(p_k + m_k)^γ − m_k] log q_k
    for the teacher's p, the one-hot label m and q = σ(z / T): features of a CNN, a transformer and an MLP have nothing
    in common, and their logits do. The teacher's features are never read. Exits do not remain.
    """

    version: ClassVar = 1
    presets: ClassVar = {"small": {**_SMALL, "train": {**_SMALL["train"], "optimizer": {"lr": 0.05}}}}

    train: StudentTraining = StudentTraining(
        epochs=300,
        batch=128,
        optimizer=SGD(lr=0.05, momentum=0.9, weight_decay=2e-3),  # of CNNs; transformers take adamw, 5e-4 and 0.05
        schedule=Cosine(),
    )
    stages: tuple[int, ...] = (1, 2, 3, 4)  # which of four evenly spaced stages have an exit
    kd: float = Field(1.0, ge=0)  # weight of ℓ on the student's own logits
    exit_weight: float = Field(0.1, ge=0)  # of ℓ on each exit; the authors' for CIFAR-100, 1 for ImageNet
    gamma: float = Field(1.0, ge=1)  # γ, which enhances the label; 1.5 for DeiT-T to ResNet-18 on ImageNet
    temperature: float = Field(1.0, gt=0)  # without the factor T²
    form: AdaptiveTarget = "code"  # the paper's formula holds the cross-entropy as well
    exits_learn: Literal["teacher", "labels"] = "teacher"  # labels: the control, exits that nobody teaches

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the student's stages with an exit."""
        return [path for path, _ in staged(student, self.stages)], ()

    def build(self, setting: Setting) -> nn.Module:
        """Return the exits, as wide at their end as the wider of both networks."""
        last = setting.student.get_submodule("head") if hasattr(setting.student, "head") else None
        width = max(_reads(last), 0 if setting.teacher is None else _reads(place(setting.teacher, EMBEDDING)[0]))
        width = width or 128
        leading = getattr(getattr(setting.student, "patches", None), "leading", 0)
        state = nn.Module()
        state.exits = nn.ModuleList(
            exit_of(setting.student_shapes[path], behind, width, setting.data.num_classes, leading=leading)
            for path, behind in staged(setting.student, self.stages)
        )
        return state

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield ℓ on the student's logits, and summed over the exits."""
        labels = batch.labels.argmax(1) if batch.labels.dim() > 1 else batch.labels  # of mixed images the larger share
        if self.kd:
            yield Term("ofa", self.distance(student.logits, teacher.logits, labels), self.kd)
        if self.exit_weight:
            exits = [leave(student.at(path)) for leave, path in zip(state.exits, student.paths, strict=True)]
            if self.exits_learn == "labels":
                each = [losses.cross_entropy(logits, labels) for logits in exits]
            else:
                each = [self.distance(logits, teacher.logits, labels) for logits in exits]
            yield Term("exits", sum(each[1:], each[0]), self.exit_weight)

    def distance(self, logits: Tensor, told: Tensor, labels: Tensor) -> Tensor:
        """Return ℓ of logits `[n, classes]`."""
        return losses.adaptive_target_cross_entropy(
            logits, told, labels, self.temperature, gamma=self.gamma, form=self.form
        )


def _reads(layer: nn.Module | None) -> int:
    """Return how many features a linear layer reads; 0 where it is none."""
    return layer.in_features if isinstance(layer, nn.Linear) else 0

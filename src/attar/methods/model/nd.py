"""ND: features as long as the teacher's that point where the teacher's class does (arXiv 2305.17007)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.data import Images
from attar.run import SGD, Drop
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, StudentTraining, Term
from attar.train.taps import EMBEDDING, Seen, answers

_SMALL: Any = Objective.presets["small"]


@method
class NormAndDirection(Objective):
    """Make a student's features long, and point along the teacher's mean of their class (Wang et al. 2023, 2305.17007).

    L = hard · CE + weight · mean [1 − ⟨f_s, e_y⟩ / max(‖f_s‖, ‖f_t‖)] + kd · w · T² KL(p_t ‖ p_s), with f what the last
    linear layer reads, e_y the direction of the teacher's mean feature of class y, and w growing over the first epochs.
    While ‖f_s‖ < ‖f_t‖ length and direction are pushed, beyond that the direction alone. It goes beside any objective:
    `objective=dkd+nd:2`; taken alone, its presets bring KD with it (KD++).
    """

    version: ClassVar = 2
    presets: ClassVar = {"small": {**_SMALL, "kd": 1.0}, "paper": {"kd": 1.0}}

    train: StudentTraining = StudentTraining(
        batch=128,  # 64 on each of two GPUs
        optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),  # lr 0.02 for MobileNet and ShuffleNet
        schedule=Drop(at=(150 / 240, 180 / 240, 210 / 240), by=0.1),
    )
    weight: float = Field(2.0, ge=0)  # of ND: 0.5 to 4 by pair, 2 for resnet56 → 20 and resnet32x4 → 8x4
    kd: float = Field(0.0, ge=0)  # weight of KD beside it: 1 for resnet56 → 20, 3.5 for resnet32x4 → 8x4
    temperature: float = Field(4.0, gt=0)  # of KD
    warmup_share: float = Field(20 / 240, ge=0, le=1)  # of the epochs, until KD has its whole weight; ND starts with it
    dropout: float = Field(0.5, ge=0, lt=1)  # before the linear map between embeddings of different sizes

    def taps(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Sequence[str], Sequence[str]]:
        """Return the embeddings."""
        return [EMBEDDING], [EMBEDDING]

    def build(self, setting: Setting) -> nn.Module:
        """Return the directions of the classes, from one pass, and a linear map where the embeddings differ in size."""
        assert setting.teacher is not None  # `taps` asks for its embedding
        (mine,), (theirs,) = setting.student_shapes[EMBEDDING], setting.teacher_shapes[EMBEDDING]
        state = nn.Module()
        state.register_buffer("means", class_means(setting.teacher, setting.data), persistent=False)
        if mine != theirs:
            setting.refuse_lone_image()
        fits = [nn.BatchNorm1d(mine), nn.Dropout(self.dropout), nn.Linear(mine, theirs)]
        state.fit = nn.Identity() if mine == theirs else nn.Sequential(*fits)
        return state

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance in norm and direction, and KD where it has a weight."""
        features = state.fit(student.embedding)
        yield Term("nd", losses.norm_direction_distance(features, teacher.embedding, state.means, batch.labels))
        if self.kd and self.weight:
            loss = losses.kl_divergence(student.logits, teacher.logits, self.temperature)
            # `weight` multiplies every term, and KD has a weight of its own
            yield Term("kd", loss, self.kd / self.weight * progress.ramp(self.warmup_share))


def class_means(teacher: nn.Module, data: Images) -> Tensor:
    """Return the teacher's mean embedding of each class over the images as they are, `[classes, features]`.

    The released code takes the mean over crops and flips, so that it differs from run to run.
    """
    _, found = answers(teacher, data, [EMBEDDING])
    embeddings = found[EMBEDDING].double()
    labels = data.labels.to(embeddings.device)
    sums = embeddings.new_zeros(data.num_classes, embeddings.shape[1]).index_add_(0, labels, embeddings)
    counts = torch.bincount(labels, minlength=data.num_classes).clamp_min(1)
    return (sums / counts[:, None]).float()

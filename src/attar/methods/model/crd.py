"""CRD: student and teacher tell each other's embedding of an image from those of others (arXiv 1910.10699)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attar import losses
from attar.errors import RecipeError
from attar.methods.model.places import ComparesEmbeddings
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import EMBEDDING, Seen


@method
class ContrastiveKD(ComparesEmbeddings):
    """Contrast with memories of all training images (Tian et al. 2020, arXiv 1910.10699).

    L = hard · CE + weight · (student against the teacher's memory + teacher against the student's), each
    −log [s₊ / (s₊ + M / N)] − Σ_negatives log [(M / N) / (s₋ + M / N)] with s = exp(⟨g, m⟩ / τ) / Z. g are the
    embeddings behind a linear layer of each side, there for training alone, of length 1; m are rows of a memory of all
    N images, one of the same image and M of images of other classes. Z is fixed at the first batch. Negatives are drawn
    with repetition, where official code does so for small sets alone. Add KD for the paper's best:
    `student objective=crd:0.8+kd:1`.
    """

    weight: float = Field(0.8, ge=0)
    dimensions: int = Field(128, ge=1)  # of both linear layers
    negatives: int = Field(16384, ge=1)  # M, of images of other classes
    temperature: float = Field(0.07, gt=0)
    momentum: float = Field(0.5, ge=0, lt=1)  # of a memory's row when its image is seen

    def build(self, setting: Setting) -> nn.Module:
        """Return heads and memories.

        Raises:
            RecipeError: one class alone.
        """
        widths = setting.student_shapes[EMBEDDING][-1], setting.teacher_shapes[EMBEDDING][-1]
        return _Memories(setting, widths, self.dimensions)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the contrast, both directions summed."""
        given = state.embed(student.embedding, teacher.embedding)
        negatives = state.others(batch, self.negatives)
        indices = torch.cat([batch.indices[:, None].to(negatives.device), negatives], 1)
        scores = [
            losses.bank_scores(anchors, bank, indices, self.temperature)
            for anchors, bank in zip(given, (state.teacher_bank, state.student_bank), strict=True)
        ]
        if progress.step == 0:
            state.log_z.copy_(torch.stack([losses.log_partition(found, len(state.student_bank)) for found in scores]))
        directions = [
            losses.noise_contrastive(found[:, 0], found[:, 1:], log_z, rows=len(state.student_bank))
            for found, log_z in zip(scores, state.log_z.clone(), strict=True)
        ]
        yield Term("crd", directions[0] + directions[1])

    def after(self, state: Any, student: Seen, teacher: Seen, batch: Batch) -> None:
        """Move the rows of the batch's images towards what was embedded."""
        state.remember(batch.indices, self.momentum)


class _Memories(nn.Module):
    """Both heads, both memories, and where the images of each class are."""

    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor
    by_label: Tensor  # numbers of all images, sorted by class
    starts: Tensor  # of each class in there
    counts: Tensor

    def __init__(self, setting: Setting, widths: tuple[int, int], dimensions: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, dimensions) for width in widths)
        labels = setting.data.labels.cpu()
        bound = (3 / dimensions) ** 0.5  # rows of length about 1
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", torch.empty(len(labels), dimensions).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.zeros(2))
        counts = torch.bincount(labels, minlength=setting.data.num_classes)
        if int(counts.max()) == len(labels):
            raise RecipeError("contrast needs images of other classes, and all of these are of one")
        known = {"by_label": labels.argsort(stable=True), "counts": counts, "starts": counts.cumsum(0) - counts}
        for name, values in known.items():
            self.register_buffer(name, values, persistent=False)
        self._draw = setting.run.rng
        self._given: list[Tensor] = []

    def embed(self, student: Tensor, teacher: Tensor) -> list[Tensor]:
        """Return both embeddings behind their heads, of length 1, `[n, dimensions]`."""
        pairs = zip(self.heads, (student, teacher), strict=True)
        found = [functional.normalize(head(features.flatten(1)), dim=1) for head, features in pairs]
        self._given = [each.detach() for each in found]
        return found

    def others(self, batch: Batch, count: int) -> Tensor:
        """Draw `count` images of other classes for each of a batch, uniformly and with repetition, `[n, count]`."""
        labels = batch.labels.to(self.counts.device)
        own, start = self.counts[labels][:, None], self.starts[labels][:, None]
        rng = self._draw("negatives", batch.step)
        drawn = torch.randint(2**62, (len(labels), count), generator=rng).to(own.device) % (len(self.by_label) - own)
        return self.by_label[drawn + own * (drawn >= start)]  # a class's own images are stepped over

    def remember(self, indices: Tensor, momentum: float) -> None:
        """Move rows towards the embeddings of the step, and back to length 1."""
        for bank, given in zip((self.student_bank, self.teacher_bank), self._given, strict=True):
            rows = momentum * bank[indices] + (1 - momentum) * given
            bank[indices] = functional.normalize(rows, dim=1)

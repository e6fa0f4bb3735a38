"""CS-KD: a student answers one image of a class as it answers another (arXiv 2003.13964)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.artifacts import Student
from attar.data import Images, augmentation
from attar.run import Run
from attar.spec import method
from attar.train.objective import Batch, Objective, Progress, Setting, Term
from attar.train.taps import Seen
from attar.train.teacher import Teacher


@method
class ClassWiseSelfKD(Objective):
    """Let images of one class be answered alike (Yun et al. 2020, arXiv 2003.13964). There is no teacher.

    L = hard · CE + weight · T² · KL(sg σ(z(x′) / T) ‖ σ(z(x) / T)), with x′ another image of the class of x, drawn for
    every image of a batch in every step. The partners go through the student in a forward of their own, from which no
    gradient comes. An image that is alone in its class is its own partner, in another view where images are augmented;
    authors' code lets any image be drawn as its own.
    """

    temperature: float = Field(4.0, gt=0)  # T

    def __call__(self, run: Run, *, data: Images, teacher: Teacher | None = None) -> Student:
        """Train the student; a teacher that is given counts nothing."""
        return super().__call__(run, data=data, teacher=Teacher(()))

    def build(self, setting: Setting) -> nn.Module:
        """Return what draws partners."""
        return _Partners(setting)

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the divergence from what the student says of the partners."""
        told = student.of(state.shown(batch), frozen=True).logits
        yield Term("class", losses.kl_divergence(student.logits, told, self.temperature))


class _Partners(nn.Module):
    """Where the images of each class are, and how they are shown; nothing to be learned or kept."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self._data, self._rng, self._augment = setting.data, setting.run.rng, augmentation(setting.train.augment)
        self._labels = setting.data.labels.cpu()
        self._counts = torch.bincount(self._labels, minlength=setting.data.num_classes)
        self._starts = self._counts.cumsum(0) - self._counts
        self._by_label = self._labels.argsort(stable=True)
        self._places = self._by_label.argsort()  # of each image among those sorted by class

    def drawn(self, batch: Batch) -> Tensor:
        """Return the number of a partner for each image of a batch `[n]`, uniform over the others of its class."""
        indices = batch.indices.cpu()
        labels = self._labels[indices]
        start, count = self._starts[labels], self._counts[labels]
        ahead = torch.randint(2**62, (len(indices),), generator=self._rng("partners", batch.step))
        ahead = 1 + ahead % (count - 1).clamp_min(1)
        return self._by_label[start + (self._places[indices] - start + ahead) % count]

    def shown(self, batch: Batch) -> Tensor:
        """Return the partners as they are shown, `[n, channels, size, size]`, each in a view of its own."""
        images, _ = self._data.batch(self.drawn(batch))
        return self._augment.draw(len(images), images.shape[1:], self._rng("partners seen", batch.step))(images)

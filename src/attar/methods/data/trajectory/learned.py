"""What trajectory matching learns: pixels, the student's step size and, where asked for, label logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attar.artifacts import DistilledSet
from attar.methods.data.trajectory.matching import Match
from attar.run import SGD, Decay, Run

STEP_SIZE_FLOOR = 0.01  # of its first value: a step size below zero would climb, and none at all would never move


class Learned:
    """The synthetic set with the learners of its parts.

    Args:
        run: keeps all of it.
        synthetic: its images are learned, in place.
        labels: `[N]` classes, or `[N, classes]` logits.
        step_size: the student's first.
        pixels: optimizer spec of the images.
        step_size_lr: of the step size, with momentum 0.5; 0 leaves it as it is.
        label_optimizer: optimizer spec of the label logits; none leaves the labels as they are.
        average: decay of the average of the images that is released; 0 releases the images themselves.
    """

    def __init__(
        self,
        run: Run,
        synthetic: DistilledSet,
        labels: Tensor,
        *,
        step_size: float,
        pixels: Any,
        step_size_lr: float,
        label_optimizer: Any = None,
        average: float = 0.0,
    ) -> None:
        self.synthetic, self.labels = synthetic, labels
        self.step_size = torch.tensor(step_size, device=run.device)
        self._floor = STEP_SIZE_FLOOR * step_size
        averages = {"released": Decay(decay=average)} if average else None
        self.pixels = run.learner("pixels", synthetic.images, pixels, ema=averages)
        self._rate = run.learner("step size", self.step_size, SGD(lr=step_size_lr, momentum=0.5))
        self._soft = None
        if label_optimizer is not None:
            self._soft = run.learner("labels", labels, label_optimizer)
        elif labels.dim() == 2:
            run.keep("labels", labels)

    @property
    def images(self) -> Tensor:
        """The synthetic images as they are now, `[N, C, H, W]`."""
        return self.synthetic.images

    def update(self, match: Match) -> None:
        """Step along the gradients of a segment; the step size stays positive."""
        if self._soft is not None:
            self._soft.add_grads([match.labels])
            self._soft.step()
        self.pixels.add_grads([match.images])
        self.pixels.step()
        self._rate.add_grads([match.step_size])
        self._rate.step()
        with torch.no_grad():
            self.step_size.clamp_(min=self._floor)

    def assign(self, logits: Tensor) -> None:
        """Replace the labels' logits, which are not learned."""
        self.labels.copy_(logits)

    def released(self) -> DistilledSet:
        """Return the set as it is handed out, soft labels as probabilities, with the student's learning rate."""
        made = self.synthetic
        made.images = self.pixels.ema.get("released", made.images).detach()
        if self.labels.dim() == 2:
            made.labels = self.labels.detach().softmax(-1)
        made.hints["student_lr"] = float(self.step_size.detach())
        return made

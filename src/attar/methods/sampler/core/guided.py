"""Guidance distillation: one evaluation of the student stands for both of a guided teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.diffusion.weights import Weighting, denoising_weight
from attar.losses.denoising import squared
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment


def guidance_loss(
    method: Distillation, lesson: Lesson, moment: Moment, x_t: Tensor, t: Tensor, *, weighting: Weighting | None = None
) -> Tensor:
    """Return the error of each sample `[n]` against the teacher's guided prediction at x_t `[n, …]` and t `[n]`.

    Of the student's own prediction, or w(t) · mean (x̂0 − x̂0^g)² with a weighting of the error of x0.
    """
    view, condition = lesson.view, moment.batch.condition
    kind = view.prediction if weighting is None else "x0"
    with torch.no_grad():
        target = method.teacher_of(lesson, moment).predict(x_t, t, condition, kind=kind)
    error = squared(view.predict(x_t, t, moment.condition, kind=kind), target)
    return error if weighting is None else denoising_weight(weighting, view.process, t).to(error) * error

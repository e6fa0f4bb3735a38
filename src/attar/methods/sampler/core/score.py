"""Score distillation: made samples go where a denoiser of the data and one of the made samples differ (DMD)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from attar.artifacts.sampler import Sampler
from attar.diffusion.view import Condition, View
from attar.losses.denoising import replaced_gradient
from attar.losses.score import distribution_gap
from attar.methods.sampler.core.distillation import Lesson, Moment
from attar.methods.sampler.core.times import Times
from attar.methods.sampler.core.training import Batch
from attar.methods.sampler.diffusion import denoising_loss
from attar.run import Adam, Learner, Optimizer
from attar.spec import spec


@spec
class ScoreDistillation:
    """A fake score, the denoiser of what the student makes, and the gap between it and a denoiser of the data."""

    times: Times = Times(lowest=0.02, highest=0.98)  # at which both denoisers are compared
    fake_times: Times = Times()  # at which the fake score learns: all of them
    updates: int = Field(1, ge=1)  # steps of the fake score for each of the student's; DMD2 takes 5
    optimizer: Optimizer = Adam(lr=1e-3, beta1=0.0)

    def build(self, lesson: Lesson, name: str = "fake") -> FakeScore:
        """Return the fake score with its learner, a copy of the teacher; call it in a method's `build`."""
        known = lesson.teacher.sampler if lesson.teacher is not None else None
        if known is None:  # a closed form has no weights to copy
            student = lesson.student
            fake = Sampler.fresh(student.net, lesson.data, student.reading, lesson.run.rng(name))
        else:
            fake = known.copy()
        module = fake.module.to(lesson.run.device).requires_grad_(True)
        return FakeScore(self, fake, lesson.run.learner(name, module, self.optimizer))


class FakeScore:
    """The denoiser of made samples; `term` is the student's side, `step` its own.

    Args:
        spec: how.
        sampler: of the denoiser.
        learner: of its weights.
    """

    def __init__(self, spec: ScoreDistillation, sampler: Sampler, learner: Learner) -> None:
        self.spec, self.sampler, self.learner = spec, sampler, learner

    @property
    def view(self) -> View:
        """The denoiser of made samples, unguided."""
        return self.sampler.denoiser

    def term(self, moment: Moment, made: Tensor, real: View, told: Condition = None) -> Tensor:
        """Return this process's share of the mean loss of clean made samples `[n, …]`, on the scale of square errors.

        Its gradient in a sample of d numbers is `distribution_gap` / d. `real` is the denoiser of the data, guided or
        not; it is told the batch's condition, or what is given.
        """
        batch, process = moment.batch, self.view.process
        t = batch.mine(self.spec.times.draw(batch.total, process, moment.run.rng("score time", moment.step)))
        noise = moment.noise("score noise", made)
        with torch.no_grad():
            x_t = process.diffuse(made.detach(), noise, t).to(made.dtype)
            wanted = real.x0(x_t, t, batch.condition if told is None else told)
            gap = distribution_gap(made, wanted, self.view.x0(x_t, t, batch.condition))
        return batch.mean(replaced_gradient(made, gap) / made[0].numel())

    def step(
        self,
        moment: Moment,
        made: Tensor | Callable[[int], Tensor],
        beside: Callable[[Tensor, int], Mapping[str, Tensor]] | None = None,
        *others: Learner,
    ) -> None:
        """Learn to denoise clean made samples `[n, …]`, from fresh noise at all times, without guidance.

        A function makes other samples for each update, told its number, without gradient. `beside` gives more terms of
        an update, told samples and number; `others` learn by them, too.
        """
        batch = moment.batch
        for number in range(self.spec.updates):
            rng = moment.run.rng("fake time", moment.step, number)
            t = batch.mine(self.spec.fake_times.draw(batch.total, self.view.process, rng))
            with torch.no_grad():
                x0 = made.detach() if isinstance(made, Tensor) else made(number)
            noise = moment.noise("fake noise", x0, number)
            shown = Batch(x0, noise, batch.condition, batch.rows, batch.total)
            terms = {"denoising": batch.mean(denoising_loss(self.sampler.denoiser, shown, t))}
            moment.run.backward({**terms, **(beside(x0, number) if beside else {})}, self.learner, *others)
            for learner in (self.learner, *others):
                learner.step()

"""Samplers without error on one Gaussian, whose trajectories have a closed form: what a perfect student would be."""

from __future__ import annotations

import torch
from torch import nn

from attar.artifacts.drawing import Ode
from attar.artifacts.sampler import Reading, Sampler
from attar.data.samples import PointSamples
from attar.diffusion import Mixture, spread, x0_of_jump
from attar.diffusion.specs import FlowProcess
from attar.methods.sampler.core.distillation import Lesson
from attar.methods.sampler.core.teacher import Teacher
from attar.nets.denoiser_specs import Extras, Form, PointMLP
from attar.nets.denoisers import parted

MEAN, STD = (1.0, -0.5), 0.4
GAUSSIAN = Mixture.gaussian(torch.tensor(MEAN), STD)
DATA = PointSamples(GAUSSIAN)


def carried(process, x, t, s):
    """Where the ODE carries x `[n, 2]` from times `[n]` to times `[n]`, exactly."""
    x, t, s = (value.double() for value in (x, t, s))
    mean = torch.tensor(MEAN, dtype=torch.float64)
    widths = [spread(torch.hypot(process.alpha(u) * STD, process.sigma(u)), x) for u in (t, s)]
    offset = x - spread(process.alpha(t), x) * mean
    return spread(process.alpha(s), x) * mean + widths[1] / widths[0] * offset


class Exact(nn.Module):
    """A network that predicts the velocity of flow matching such that its x0 leads exactly to `end(t)` by DDIM."""

    def __init__(self, process, end):
        super().__init__()
        self.process, self.end = process, end
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x, label, condition=None):
        """The velocity (x − x0) / t; with a second time the mean velocity between both."""
        t, (_, _, second) = label.double(), parted(condition)
        if second is not None:
            r = second.double()
            same = (t - r).abs() < 1e-9
            moved = carried(self.process, x, t, torch.where(same, t - 1e-6, r))
            mean = (x - moved) / torch.where(same, torch.full_like(t, 1e-6), t - r)[:, None]
            return mean.to(x.dtype) + self.nothing
        end = self.end(t)
        x0 = x0_of_jump(self.process, x.double(), carried(self.process, x, t, end), t, end)
        return ((x - x0) / t[:, None]).to(x.dtype) + self.nothing


def student(end=torch.zeros_like):
    """A sampler on flow matching around `Exact`."""
    reading = Reading(process=FlowProcess(), prediction="velocity", drawing=Ode())
    module = Exact(FlowProcess().build(), end)
    return Sampler(module, PointMLP(), Form(shape=(2,), labels=1), reading, extras=Extras(second_time=True))


def lesson(run, method, sampler):
    """What a method's terms read: the exact teacher, and a student."""
    process = sampler.reading.process.build()
    teacher = Teacher(DATA.exact(process), DATA.null, None)
    learner = run.learner("student", sampler.module, method.train.optimizer)
    made = Lesson(run, DATA, teacher, sampler, learner)
    made.state = method.build(made)
    return made


def loss(run, method, sampler):
    """The sum of the terms of a method's first step."""
    made = lesson(run, method, sampler)
    moment = method.moment(made, method.phases()[0], 0)
    return sum(float(sum(terms.values()).detach()) for terms in method.terms(made, moment))

"""Samplers without error: the exact velocity of a mixture as the network of a sampler."""

from __future__ import annotations

import torch
from torch import nn

from attar.artifacts.sampler import Reading, Sampler
from attar.data.samples import Labelled, PointSamples
from attar.diffusion.mixture import Mixture
from attar.diffusion.process import Flow
from attar.diffusion.specs import FlowProcess
from attar.nets.denoiser_specs import PointMLP


class ExactVelocity(nn.Module):
    """The velocity of a mixture under flow matching, called as denoisers are."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))  # a network has a device
        self.view = Labelled(mixture.view(Flow()), int(mixture.labels.max()) + 1)

    def forward(self, x, label, condition):
        return self.view.velocity(x, label, condition)


def exact_sampler(mixture: Mixture | None = None, drawing: object = "ode", **reading: object) -> Sampler:
    """Return a sampler whose ODE is exact."""
    mixture = mixture or Mixture.ring()
    data = PointSamples(mixture, source="ring")
    read = Reading(process=FlowProcess(), prediction="velocity", drawing=drawing, **reading)
    return Sampler(ExactVelocity(mixture), PointMLP(), data.form, read, conditions=data.conditions, source="ring")

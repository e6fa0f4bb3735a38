"""DCC: match the gradient of all classes together, which also tells classes apart."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.artifacts import DistilledSet
from attar.data import Images
from attar.losses.matching import GradientDistance
from attar.methods.data import dc
from attar.methods.data.dc import GradientMatching, Parameters
from attar.run import Learner, Run
from attar.spec import method


def collective_distance(
    network: nn.Module, real: Parameters, images: Tensor, labels: Tensor, kind: GradientDistance
) -> Tensor:
    """Return the distance of the synthetic set's gradient to the real one, differentiable in the images.

    The gradient is that of the mean cross-entropy of all `images` `[N, C, H, W]` with `labels` `[N]`; `real` holds the
    mean over classes of the real gradients, by name (Lee et al. 2022, arXiv 2202.02916).
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(at: Parameters) -> Tensor:
        return losses.cross_entropy(torch.func.functional_call(network, at, (images,)), labels)

    fake = torch.func.grad(loss)(parameters)
    return losses.gradient_distance(list(fake.values()), list(real.values()), kind)


@method
class CollectiveMatching(GradientMatching):
    """Match the gradient of all classes in one, so that what classes share cancels out (arXiv 2202.02916).

    The first updates of the first networks still match class by class. Its loss is one distance where DC's is one a
    class: learning rates of the pixels do not carry over. With `augment=dsa` it is the paper's DSAC. Everything else is
    `GradientMatching`.
    """

    version: ClassVar = 1
    schedule: ClassVar = {**dc.SCHEDULE, 1: (10, 5)}
    presets: ClassVar = {"small": {**GradientMatching.presets["small"], "warmup_share": 0.25, "ipc=1": {"epochs": 5}}}

    init: Literal["noise", "real"] = "real"
    warmup_networks: int = Field(250, ge=0)  # matched class by class in their first updates
    warmup_updates: int = Field(10, ge=0)  # of such a network that match class by class
    warmup_share: float | None = Field(
        None, ge=0, le=1
    )  # instead of warmup_networks: their share of all, in short runs

    def match(
        self, run: Run, data: Images, synthetic: DistilledSet, network: nn.Module, *, pixels: Learner, step: int
    ) -> None:
        """Send the gradient of the one distance to the pixels, or of every class's in the warm-up."""
        if self.warming_up(*divmod(step, self.path(len(synthetic))[0])):
            super().match(run, data, synthetic, network, pixels=pixels, step=step)
            return
        total = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
        shown = [synthetic.images[:0]]  # there may be no chunk
        for real, fake, _ in self.pairs(run, data, synthetic, network, step=step):
            for name, gradients in real.items():
                total[name] += gradients.sum(0) / data.num_classes
            shown.append(fake.flatten(0, 1))
        images, total = run.joined(shown, total)
        labels = torch.arange(data.num_classes, device=run.device).repeat_interleave(self.shown_ipc)
        run.backward(collective_distance(network, total, images, labels, self.distance), pixels, joined=True)

    def warming_up(self, number: int, update: int) -> bool:
        """Say whether this update of network `number` matches class by class."""
        share = self.warmup_share
        networks = self.warmup_networks if share is None else share * self.steps
        return number < networks and update < self.warmup_updates

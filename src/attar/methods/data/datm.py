"""DATM: early segments for few images, late ones for many, and labels that are learned."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from attar.artifacts import DistilledSet
from attar.artifacts.trajectories import Trajectories
from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.trajectory import start as starting
from attar.methods.data.trajectory.experts import ExpertRecipe, Flat
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.presets import SMALL, row
from attar.methods.data.trajectory.segments import Window
from attar.spec import method


def aligned(ipc: int, window: tuple[int, ...], table: tuple[float, ...], **more: Any) -> dict[str, Any]:
    """Return a preset from the paper's table: (T⁻, T⁺) or (T⁻, T, T⁺, E), and (T_steps, M, lr, batch, lr of labels)."""
    first, *grow, stop = window[:3] if len(window) == 4 else window
    steps, epochs, lr, batch, label_lr = table
    made = row(ipc, (steps, epochs, stop, lr, more.pop("rate", 1e-5), 0.01), batch=int(batch), **more)
    grows = {"grow_from": grow[0], "grow_over": window[3]} if grow else {"grow_from": None, "grow_over": 0}
    made["window"] |= {"first": first, **grows}
    return {**made, "label_optimizer": {"lr": float(label_lr)}}


@method
class DifficultyAligned(TrajectoryMatching):
    """Match the part of the experts' training that suits the number of images (Guo et al. 2024, arXiv 2310.05773).

    Early epochs teach easy patterns and serve few images a class; late ones teach hard patterns and need many. The
    window of start epochs grows during the run. Images start from real ones that experts classify correctly, labels
    from those experts' logits, and both are learned; with `init=real` from any images and the first expert's logits.
    Segments whose loss is above `threshold` move nothing, and the log holds the share of them. Experts are FTD's, of
    100 epochs. Everything else is `TrajectoryMatching`.
    """

    version: ClassVar = 1
    protocol: ClassVar = "datm"  # the student reads 128 images a step, with soft labels
    presets: ClassVar = {
        "small": {
            **SMALL,
            "window": {"first": 0, "grow_from": 2, "stop": 4, "grow_over": 60},
            "label_optimizer": {"lr": 2.0},
            "experts": {**SMALL["experts"], "flat": {"alpha": 0.3}},
        },
        "cifar-10-ipc-1": aligned(1, (0, 4), (80, 2, 100, 10, 5), rate=1e-7, threshold=1.1),
        "cifar-10-ipc-10": aligned(10, (0, 10, 20, 1000), (80, 2, 100, 100, 2)),
        "cifar-10-ipc-50": aligned(50, (0, 20, 40, 2000), (80, 2, 1000, 500, 2)),
        "cifar-10-ipc-500": aligned(500, (40, 60), (40, 2, 50, 1000, 10)),
        "cifar-10-ipc-1000": aligned(1000, (40, 60), (100, 2, 50, 1000, 10)),
        "cifar-100-ipc-1": aligned(1, (0, 10, 20, 1000), (40, 3, 1000, 1000, 10)),
        "cifar-100-ipc-10": aligned(10, (0, 30, 50, 1000), (80, 2, 1000, 1000, 10)),
        "cifar-100-ipc-50": aligned(50, (20, 70), (80, 2, 1000, 1000, 10), init="real"),
        "cifar-100-ipc-100": aligned(100, (30, 70), (80, 2, 50, 1000, 10)),
        "tiny-imagenet-ipc-1": aligned(1, (0, 15, 20, 1000), (40, 2, 10_000, 1000, 10), rate=1e-4, net={"depth": 4}),
        "tiny-imagenet-ipc-10": aligned(10, (10, 50), (40, 2, 100, 500, 10), rate=1e-4, net={"depth": 4}),
        "tiny-imagenet-ipc-50": aligned(50, (40, 70), (20, 2, 100, 1000, 10), rate=1e-4, net={"depth": 4}),
    }

    # the paper's for CIFAR-10 at ten images a class
    steps: int = Field(10_000, ge=1)
    student_steps: int = Field(80, ge=1)
    window: Window = Window(first=0, grow_from=10, stop=20, grow_over=1000)
    batch: int | None = Field(100, ge=1)
    step_size: float = Field(0.01, gt=0)
    labels: Literal["hard", "assigned", "learned"] = "learned"
    init: Literal["real", "representative", "correct"] = "correct"
    threshold: float | None = Field(1.0, gt=0)
    experts: ExpertRecipe = ExpertRecipe(epochs=100, flat=Flat())

    def first_logits(self, network: FlatNetwork, experts: Trajectories, synthetic: DistilledSet) -> Tensor:
        """Return the logits `[n, classes]` that learned labels start from; of real images the first expert's.

        These are taken where they are wrong, too, as in the official code.
        """
        if self.init == "real":
            return starting.logits_of(network, experts.experts[0][-1].to(network.device), synthetic.images)
        return super().first_logits(network, experts, synthetic)

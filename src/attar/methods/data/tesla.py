"""TESLA: trajectory matching whose gradient leaves out how one step of the student moves the next."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.trajectory.matching import Backward
from attar.methods.data.trajectory.presets import SMALL, row
from attar.methods.data.trajectory.segments import Window
from attar.run import SGD, Optimizer
from attar.spec import method


@method
class ConstantMemoryMatching(TrajectoryMatching):
    """Match trajectories with memory that does not grow with the student's steps (Cui et al. 2023, arXiv 2211.10586).

    The gradient holds every intermediate point of the student constant: nearly MTT's for short segments and small step
    sizes. `backward=exact` is MTT's at the same memory. For many classes, `labels=assigned` replaces hard labels by
    the expert's answers in every step. Everything else is `TrajectoryMatching`.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": SMALL,
        # the paper's rows, for data that are whitened (data=…?zca) or plain; their rates of the pixels are twice these
        "cifar-10-ipc-1": row(1, (50, 2, 5, 500, 1e-7, 0.01), steps=10_000),  # plain
        "cifar-100-ipc-50": row(50, (80, 2, 40, 500, 1e-5, 0.01), steps=10_000, batch=125),  # ?zca
        "imagenet-ipc-1": row(
            1, (10, 3, 10, 5000, 1e-4, 0.01), steps=10_000, batch=100, labels="assigned",
            net={"depth": 4}, experts={"count": 50},
        ),  # plain
    }  # fmt: skip

    # the paper's for CIFAR-10 at one image a class, the row of which every number is known
    ipc: int = Field(1, ge=1)  # images per class
    steps: int = Field(10_000, ge=1)
    student_steps: int = Field(50, ge=1)
    window: Window = Window(stop=5)
    optimizer: Optimizer = SGD(lr=500.0, momentum=0.5)  # of the pixels; half the paper's, whose code lacks a factor 2
    step_size: float = Field(0.01, gt=0)
    step_size_lr: float = Field(1e-7, ge=0)
    backward: Backward = "tesla"  # exact: with the second-order terms, at the same memory
    labels: Literal["hard", "assigned", "learned"] = "hard"

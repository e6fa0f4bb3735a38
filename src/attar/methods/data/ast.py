"""AST: smooth and strong experts, and a student that keeps to them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.trajectory.experts import ExpertRecipe
from attar.methods.data.trajectory.presets import SMALL, row
from attar.methods.data.trajectory.segments import Window
from attar.run import SGD, Drop, Optimizer
from attar.spec import method

SMOOTH = ExpertRecipe(
    optimizer=SGD(lr=3e-3, momentum=0.9, weight_decay=1e-3),
    # behind epoch 26 of 0 to 49; the official code makes a new optimizer there, here the momentum is kept
    schedule=Drop(at=(27 / 50,), by=0.6),
    ramp=10,
    penalty=2.0,
)


@method
class SmoothExperts(TrajectoryMatching):
    """Match experts that are strong and smooth, with a student that is held to them (Shen et al. 2023, 2310.10541).

    Experts have momentum and weight decay, a loss that is ramped up (`experts.ramp`) and a penalty on their input
    gradient (`experts.penalty`). The student has five options of its own, each a field: representative images to start
    from (`init`), momentum (`student_momentum`), larger steps in late segments (`balanced`), the epochs in between
    (`intermediate`) and a perturbed start (`perturbation`). Everything else is `TrajectoryMatching`.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {
            **SMALL,
            # momentum 0.9 takes a student four times as far in ten steps, and these experts go twice as far
            "step_size": 0.01,
            "expert_epochs": 3,
            "perturbation": 0.1,
            "experts": {
                **SMALL["experts"],
                "optimizer": {"lr": 3e-3},
                "ramp": 3,
            },
        },
        "cifar-100-ipc-1": row(1, (20, 3, 20, 1000, 1e-5, 0.01)),
        "cifar-100-ipc-10": row(10, (20, 2, 30, 1000, 1e-5, 0.01), batch=128),
        "cifar-100-ipc-50": row(50, (80, 2, 40, 1000, 1e-5, 0.01), batch=700),
        "cifar-10-ipc-10": row(10, (30, 2, 20, 100, 1e-5, 0.001), balanced=True),
        "tiny-imagenet-ipc-1": row(1, (10, 2, 10, 10_000, 1e-4, 0.01), net={"depth": 4}),
    }

    # the paper's for CIFAR-100 at one image a class
    ipc: int = Field(1, ge=1)  # images per class
    student_steps: int = Field(20, ge=1)
    expert_epochs: int = Field(3, ge=1)
    window: Window = Window(stop=20)
    optimizer: Optimizer = SGD(lr=1000.0, momentum=0.5)
    step_size: float = Field(0.01, gt=0)
    init: Literal["real", "representative", "correct"] = "representative"
    student_momentum: float = Field(0.9, ge=0, lt=1)
    balanced: bool = False  # the code sets it for CIFAR-10 alone
    intermediate: Literal["none", "equal", "adaptive"] = "equal"
    perturbation: float = Field(1.0, ge=0)  # of the start's convolutions, relative
    experts: ExpertRecipe = SMOOTH

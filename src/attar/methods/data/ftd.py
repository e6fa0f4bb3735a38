"""FTD: experts on flat trajectories, and an average of the images."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.trajectory.experts import ExpertRecipe, Flat
from attar.methods.data.trajectory.presets import SMALL, row
from attar.spec import method


def flat(alpha: float) -> dict[str, Any]:
    """Return the part of a preset that says how much of the orthogonal gradient an expert's step leaves out."""
    return {"flat": {"alpha": alpha}}


@method
class FlatTrajectories(TrajectoryMatching):
    """Match experts that follow flat trajectories, so that a student's errors hurt less (Du et al. 2023, 2211.11004).

    Errors of matched segments add up when a student is trained from scratch; where the loss is flat they cost little.
    The released images are an exponential average of the learned ones. Everything else is `TrajectoryMatching`.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        # a decay of 0.9995 over 120 steps would return the first images: the horizon is a tenth of the run instead
        "small": {**SMALL, "average_share": 0.1, "experts": {**SMALL["experts"], **flat(0.3)}},
        # the paper's rows; whether data are whitened (data=…?zca) is known of those whose commands are public
        "cifar-10-ipc-1": row(1, (50, 2, 2, 100, 1e-7, 0.01), average=0.9999, experts=flat(0.3)),  # unconfirmed
        "cifar-10-ipc-10": row(10, (30, 2, 20, 100, 1e-5, 0.001), average=0.9995, experts=flat(0.3)),  # ?zca
        "cifar-10-ipc-50": row(50, (30, 2, 40, 1000, 1e-5, 0.01), average=0.999, experts=flat(1.0)),  # unconfirmed
        "cifar-100-ipc-1": row(1, (40, 3, 20, 1000, 1e-5, 0.01), average=0.9995, experts=flat(1.0)),  # unconfirmed
        "cifar-100-ipc-10": row(10, (20, 2, 40, 1000, 1e-5, 0.01), average=0.9995, experts=flat(1.0)),  # ?zca
        "cifar-100-ipc-50": row(
            50, (80, 2, 40, 1000, 1e-5, 0.01), average=0.999, batch=1000, experts=flat(1.0)
        ),  # unconfirmed
        "tiny-imagenet-ipc-1": row(
            1, (30, 2, 10, 10_000, 1e-4, 0.01), average=0.999, experts=flat(1.0), net={"depth": 4}
        ),  # unconfirmed
        "tiny-imagenet-ipc-10": row(
            10, (20, 2, 40, 10_000, 1e-4, 0.01), average=0.999, batch=500, experts=flat(1.0), net={"depth": 4}
        ),  # unconfirmed
    }

    average: float = Field(0.9995, ge=0, lt=1)  # decay of the average of the pixels, which is what is released
    experts: ExpertRecipe = ExpertRecipe(flat=Flat())

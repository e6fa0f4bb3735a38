"""What the claims of trajectory matching share: experts as common stages, sets made from them, and what both cost."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from attar.artifacts import DistilledSet
from attar.claims.condensation import NET, CondensationClaim
from attar.data import Images
from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.trajectory.experts import ExpertRecipe, RecordExperts
from attar.methods.data.trajectory.segments import Window
from attar.run import SGD, Run

EXPERTS = ExpertRecipe(count=3, epochs=12, images=6000, augment="none", optimizer=SGD(lr=0.02))  # the card's, 40 s


class TrajectoryClaim(CondensationClaim):
    """An arm matches trajectories of experts; three copies of the experts are dealt to the seeds in turn."""

    copies = 3
    fixed = ("the test set", "the training set, but for the validation part in tuning", "the experts: three copies")
    uses: ClassVar = ("attar.claims.condensation", "attar.claims.trajectory")

    def matching(self, **changes: Any) -> TrajectoryMatching:
        """Return the card's method for F14 with `changes`: T 10, M 2, step size 0.02, whole set, no augmentation."""
        fields: dict[str, Any] = {
            "ipc": 1,
            "steps": 120,
            "student_steps": 10,
            "window": Window(stop=4),
            "step_size": 0.02,
            "step_size_lr": 0.0,
            "net": NET,
            "augment": "none",
            "experts": EXPERTS,
        }
        return TrajectoryMatching(**{**fields, **changes})

    def distil(
        self, run: Run, method: TrajectoryMatching, data: Images, *, seed: int, name: str = "set"
    ) -> DistilledSet:
        """Return the set that `method` makes with experts that other arms and seeds share, and count all passes."""
        if self.quick:
            method = shortened(method)
        self.meter.add(**spent(method, data))
        experts = run.stage("experts", RecordExperts(net=method.net, recipe=method.experts), data=data)
        made: DistilledSet = run.stage(name, method, seed=seed, data=data, trajectories=experts)
        return made


def pixels(lr: float) -> SGD:
    """Return the optimizer of the pixels."""
    return SGD(lr=lr, momentum=0.5)


def shortened(method: TrajectoryMatching) -> TrajectoryMatching:
    """Return the method with a few short segments of one short expert, for the quick form."""
    experts = dataclasses.replace(method.experts, count=1, epochs=method.expert_epochs, images=100)
    init = "real" if method.init == "correct" else method.init  # such an expert knows no image of some classes
    short: dict[str, Any] = {"steps": 2, "student_steps": 3, "window": Window(stop=1), "init": init}
    return dataclasses.replace(method, **short, experts=experts)


def spent(method: TrajectoryMatching, data: Images) -> dict[str, int]:
    """Return updates and passes of the experts and of the segments.

    An expert's step is a forward and a backward pass; a flat one takes two of each, and the gradient penalty adds a
    forward and three backward passes. A student's step is a forward and a backward pass where it moves, and where it is
    differentiated the same again with a second backward through the gradient.
    """
    recipe, images = method.experts, method.ipc * data.num_classes
    seen = recipe.count * recipe.epochs * min(recipe.images or len(data), len(data)) * (2 if recipe.flat else 1)
    read = method.steps * method.student_steps * min(method.batch or images, images)
    return {
        "updates": method.steps,
        "forward": seen * (2 if recipe.penalty else 1) + 2 * read,
        "backward": seen * (4 if recipe.penalty else 1) + 3 * read,
    }

"""Shared by the tests of objectives: a network of milliseconds, and how it is trained."""

from __future__ import annotations

from attar.nets import ConvNet
from attar.run import SGD, Constant
from attar.train.objective import StudentTraining

NET = ConvNet(depth=1, width=4)


def steps(count=5, batch=6, lr=0.1, **changes):
    """Return how a student is trained: a few steps of plain gradient descent, no augmentation."""
    fields = {"augment": "none", "optimizer": SGD(lr=lr), "schedule": Constant(), **changes}
    return StudentTraining(steps=count, batch=batch, **fields)

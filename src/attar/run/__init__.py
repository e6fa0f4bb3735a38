"""The run and what it is made of."""

from attar.run.learner import Decay, Learner
from attar.run.optimizers import SGD, Adam, AdamW, Constant, Cosine, Drop, Linear, Optimizer, RAdam, Schedule
from attar.run.plan import Plan
from attar.run.run import Run
from attar.run.state import Kept

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Decay",
    "Drop",
    "Kept",
    "Learner",
    "Linear",
    "Optimizer",
    "Plan",
    "RAdam",
    "Run",
    "Schedule",
]

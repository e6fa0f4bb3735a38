"""Losses as pure functions: tensors in, tensor out, no modules and no state. Every formula is usable alone."""

from attar.losses.divergence import cross_entropy, kl_divergence, soft_cross_entropy
from attar.losses.matching import (
    attention_maps,
    gradient_distance,
    mean_embedding_distance,
    squared_mean_distance,
)
from attar.losses.reduction import Reduction, reduce
from attar.losses.trajectory import trajectory_distance

__all__ = [
    "Reduction",
    "attention_maps",
    "cross_entropy",
    "gradient_distance",
    "kl_divergence",
    "mean_embedding_distance",
    "reduce",
    "soft_cross_entropy",
    "squared_mean_distance",
    "trajectory_distance",
]

"""What recovered images must share with the data a network was trained on: the statistics of its batch norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Statistics = tuple[Tensor, Tensor]  # mean and variance, each [channels]


def input_statistics(x: Tensor) -> Statistics:
    """Return mean and biased variance `[channels]` of a batch norm's input `[n, channels, …]`, over all but channels.

    Half precision is taken to float32 first.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    across = [0, *range(2, x.dim())]
    mean = x.mean(across, keepdim=True)
    return mean.flatten(), (x - mean).square().mean(across)  # half the time of x.var, with its backward, on a CPU


def statistics_distance(
    found: Sequence[Statistics],
    wanted: Sequence[Statistics],
    *,
    first_weight: float = 10.0,
    variance_weight: float = 1.0,
) -> Tensor:
    """Return R_BN = Σ_l w_l (‖μ_l − m_l‖₂ + r · ‖σ²_l − v_l‖₂), the distance of batch statistics to running ones.

    Args:
        found: (m_l, v_l) of the images, layer by layer; gradients flow to these alone.
        wanted: (μ_l, σ²_l), the running statistics of the same layers.
        first_weight: w_1; all other w_l are 1.
        variance_weight: r; 1 for SRe2L, above 1 where images must differ from each other (DWA).

    Norms are not squared, and have the gradient 0 where they are 0. Yin et al. 2023 (arXiv 2306.13092, equation 7;
    weights from the official code), Du et al. 2024 (arXiv 2409.17612, equation 11) for r.

    Raises:
        ValueError: the two do not have the same layers.
    """
    terms = []
    for layer, ((mean, variance), (running_mean, running_variance)) in enumerate(zip(found, wanted, strict=True)):
        means = torch.linalg.vector_norm(running_mean.detach() - mean)
        variances = torch.linalg.vector_norm(running_variance.detach() - variance)
        terms.append((first_weight if layer == 0 else 1.0) * (means + variance_weight * variances))
    return torch.stack(terms).sum()

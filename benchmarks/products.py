"""A training step of networks made of products: by oneDNN, as in every run on AMD's processors, against torch's own.

python -m benchmarks.products
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from attar.nets import ViT
from attar.run import guards
from attar.run.memory import keep_freed_memory
from benchmarks.measure import HEADER, Ratio, paired

PAIRS = 25


def transformer() -> tuple[nn.Module, torch.Tensor]:
    """Return the small vision transformer of the claims, and a batch for it."""
    return ViT(patch=4, width=64, depth=4, heads=4, pool="mean").build(1, 28, 10), torch.rand(64, 1, 28, 28)


def perceptron() -> tuple[nn.Module, torch.Tensor]:
    """Return a perceptron as it denoises points, and a batch for it."""
    layers = nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)
    return nn.Sequential(*layers), torch.rand(512, 64)


def measure(topic: str, made: tuple[nn.Module, torch.Tensor]) -> Ratio:
    """Return how many times as long a step takes outside of a run, on one thread too."""
    module, batch = made
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        module(batch).square().mean().backward()
        optimizer.step()

    def ours() -> None:
        with guards.threads(1):
            step()

    torch.set_num_threads(1)
    return paired(topic, ours, step, pairs=PAIRS, target=">= 1.0", note="1 thread; torch's own / by oneDNN", warmup=3)


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    keep_freed_memory()
    topics: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
        "ViT step, 28 px, width 64": transformer,
        "perceptron step, 512 points, width 256": perceptron,
    }
    return [measure(topic, made()) for topic, made in topics.items()]


if __name__ == "__main__":
    print(HEADER, *(ratio.line() for ratio in main()), sep="\n")

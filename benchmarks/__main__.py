"""Measure every topic, one after another, and print one table."""

from __future__ import annotations

from benchmarks import (
    dm,
    dsa,
    engine_overhead,
    evaluation,
    import_time,
    kd,
    products,
    recovery,
    samplers,
    trajectory,
)
from benchmarks.measure import HEADER


def main() -> None:
    """Print each ratio as soon as it is there."""
    print(HEADER, flush=True)
    topics = (import_time, engine_overhead, products, dm, dsa, trajectory, recovery, kd, samplers, evaluation)
    for topic in topics:
        for ratio in topic.main():
            print(ratio.line(), flush=True)


if __name__ == "__main__":
    main()

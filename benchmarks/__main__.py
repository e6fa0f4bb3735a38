"""Measure every topic, one after another, and print one table."""

from __future__ import annotations

from benchmarks import dm, dsa, engine_overhead, evaluation, import_time, kd, recovery, samplers, trajectory
from benchmarks.measure import HEADER


def main() -> None:
    """Print each ratio as soon as it is there."""
    print(HEADER, flush=True)
    for topic in (import_time, engine_overhead, dm, dsa, trajectory, recovery, kd, samplers, evaluation):
        for ratio in topic.main():
            print(ratio.line(), flush=True)


if __name__ == "__main__":
    main()

"""Claims about points whose samples come closer to the data than sliced distances can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attar.artifacts.sampler import Sampler
from attar.claims.samplers import Bed, SamplerClaim
from attar.metrics.generative import energy_distance
from attar.run import Run
from attar.train.generation import Asked, real_points

COMPARED = 5_000  # points of an arm, and of the data


class EnergyClaim(SamplerClaim):
    """A claim about points that are compared by the energy distance.

    Chance in how many points a mode gets keeps the sliced distance of 10,000 true points of the ring at 0.07, which is
    more than a fifth of what students of two steps have; their energy distance is 20 times its floor and more.
    """

    def judge(self, run: Run, bed: Bed, sampler: Sampler, steps: Sequence[int] = (1,), **more: Any) -> dict[str, float]:
        """Return what samples in each number of steps are worth, and `energy_floor`, of as many true points."""
        asked = Asked.of(bed.data, self.samples(bed), run.seed)
        real = real_points(bed.data, asked, "real")[:COMPARED]
        found = super().judge(run, bed, sampler, steps, **more)
        for count in steps:
            x = asked.draw(sampler, count, more.get("guidance"))
            found[f"energy_{count}"] = energy_distance(x[:COMPARED], real)
        return found | {"energy_floor": energy_distance(real_points(bed.data, asked, "floor")[:COMPARED], real)}

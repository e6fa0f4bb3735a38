"""A generator of one process seen on another, without loss: times of equal signal-to-noise ratio, and a rescaled x.

From flow matching to TrigFlow this is SANA-Sprint's wrapper (2503.09641), from EDM to TrigFlow sCM's (2410.11081), and
from VP to TrigFlow x is the same and t is the angle. Nothing is in place and nothing is detached: forward and reverse
derivatives in x and in t pass through.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attar.diffusion.process import Process, spread
from attar.diffusion.view import Condition, View


def transfer_time(source: Process, target: Process, t: Tensor) -> Tensor:
    """Return the time of `target` at which σ/α is that of `source` at t; by angles, so finite at both ends."""
    return target.time_at(source.angle(t))


def transfer_state(source: Process, target: Process, x: Tensor, t: Tensor) -> Tensor:
    """Return x `[n, …]` of `source` at t as the state of `target` at the matching time, of the same x0 and ε."""
    t = t.double()
    gain = target.length(transfer_time(source, target, t)) / source.length(t)
    return (spread(gain, x) * x).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Transferred(View):
    """A generator on another process than its own: equal x0 and ε at equal signal-to-noise ratio.

    Times whose ratio the generator's own process does not reach are refused: a sampler begins at
    `transfer_time(view.process, process, view.process.t_max)` (arctan(80 / σ_d) from EDM to TrigFlow).
    """

    view: View
    process: Process

    def _moved(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        exact = self.process.inside(t.double())
        own = transfer_time(self.process, self.view.process, exact)
        return transfer_state(self.process, self.view.process, x, exact), self.view.process.inside(own)

    def x0_eps(self, x: Tensor, t: Tensor, condition: Condition = None) -> tuple[Tensor, Tensor]:
        """Return the clean sample and the noise `[n, …]`.

        Raises:
            RecipeError: a time outside either process.
        """
        return self.view.x0_eps(*self._moved(x, t), condition)

    def x0(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Return the clean sample, also where ε is undetermined."""
        return self.view.x0(*self._moved(x, t), condition)


def transfer(view: View, process: Process) -> View:
    """Return the generator on `process`; one that is already there is returned as it is."""
    if view.process == process:
        return view
    return Transferred(view, process)

"""What solvers, guidance and transfer need to know of a generator: its process, and (x0, ε) at any point and time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from attar.diffusion.prediction import Prediction, coefficients
from attar.diffusion.process import Process, spread

Condition = Tensor | Mapping[str, Tensor] | None  # labels or embeddings [n, …], several of them by name, or none


class View(ABC):
    """A generator seen as predictions at (x, t): `x` is `[n, …]`, `t` is `[]` or `[n]` on the clock of `process`."""

    process: Process

    @abstractmethod
    def x0_eps(self, x: Tensor, t: Tensor, condition: Condition = None) -> tuple[Tensor, Tensor]:
        """Return the clean sample and the unit noise `[n, …]`, from one evaluation."""

    def x0(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Return the clean sample E[x0 | x] `[n, …]`."""
        return self.x0_eps(x, t, condition)[0]

    def eps(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Return the unit noise E[ε | x] `[n, …]`."""
        return self.x0_eps(x, t, condition)[1]

    def velocity(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Return dx/dt of the probability-flow ODE on the process's own clock, towards the noise."""
        return self.predict(x, t, condition, kind="velocity")

    def score(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Return ∇ log p_t(x) = −ε / σ_t."""
        return (-self.eps(x, t, condition) / spread(self.process.sigma(t.double()), x)).to(x.dtype)

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None, *, kind: Prediction) -> Tensor:
        """Return the prediction of the given kind `[n, …]`.

        Raises:
            RecipeError: a kind that is unknown or not defined on the process.
        """
        if kind == "x0":
            return self.x0(x, t, condition)
        a, b = coefficients(kind, self.process, t)
        x0, eps = self.x0_eps(x, t, condition)
        return (spread(a, x) * x0 + spread(b, x) * eps).to(x.dtype)

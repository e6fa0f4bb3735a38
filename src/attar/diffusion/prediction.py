"""What networks predict, and how one prediction becomes another.

With x = α x0 + σ ε known, every prediction is a linear form p = a x0 + b ε, so that

    x0 = (b x − σ p) / (α b − σ a)        ε = (α p − a x) / (α b − σ a)

| kind       | a                          | b                    | note                                              |
|------------|----------------------------|----------------------|---------------------------------------------------|
| `x0`       | 1                          | 0                    | the clean sample                                  |
| `eps`      | 0                          | 1                    | the unit noise                                    |
| `v`        | −σ                         | α                    | needs α² + σ² = 1 (Salimans and Ho 2022)          |
| `velocity` | α'                         | σ'                   | dx/dt; ε − x0 for flow matching                   |
| `edm`      | σ / (σ_d √(σ² + σ_d²))     | −σ_d / √(σ² + σ_d²)  | F of D = c_skip x + c_out F, on VE alone          |
| `trig`     | −sin t / σ_d               | cos t                | F of dx/dt = σ_d F, on TrigFlow alone             |

Coefficients and products are float64 and the result has the dtype of `x`: near the ends of a process the division by
α or σ would eat half of the digits of float32.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from attar.diffusion.process import VE, Process, TrigFlow, VariancePreserving, spread
from attar.errors import RecipeError, did_you_mean

Prediction = Literal["x0", "eps", "v", "velocity", "edm", "trig"]
HOMES: dict[str, tuple[type[Process], str]] = {
    "v": (VariancePreserving, "a process with α² + σ² = 1 (VPDiscrete, VPContinuous, Cosine)"),
    "edm": (VE, "VE"),
    "trig": (TrigFlow, "TrigFlow"),
}


def check_prediction(kind: str, process: Process) -> None:
    """Refuse a kind that is unknown or has no meaning on the process.

    Raises:
        RecipeError: an unknown kind, or `v`, `edm` or `trig` on another process than theirs.
    """
    if kind not in get_args(Prediction):
        known = ", ".join(get_args(Prediction))
        hint = did_you_mean(kind, get_args(Prediction))
        raise RecipeError(f"unknown prediction '{kind}'{hint} A network predicts one of: {known}")
    if kind in HOMES and not isinstance(process, HOMES[kind][0]):
        raise RecipeError(
            f"the prediction '{kind}' is defined on {HOMES[kind][1]}, not on {type(process).__name__}; "
            "on flow matching the network's output is 'velocity'"
        )


def coefficients(kind: Prediction, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (a, b) of p = a x0 + b ε at the times t, in float64.

    Raises:
        RecipeError: a prediction that is unknown or not defined on the process.
    """
    check_prediction(kind, process)
    t = t.double()
    zeros, ones = torch.zeros_like(t), torch.ones_like(t)
    if kind == "x0":
        return ones, zeros
    if kind == "eps":
        return zeros, ones
    if kind == "v":
        alpha, sigma = process.levels(t, t)
        return -sigma, alpha
    if kind == "velocity":
        return process.alpha_rate(t), process.sigma_rate(t)
    data = process.sigma_data if isinstance(process, VE | TrigFlow) else 1.0  # the two homes of what follows
    if kind == "trig":
        return -torch.sin(t) / data, torch.cos(t)
    length = torch.hypot(t, torch.full_like(t, data))
    return t / (data * length), -data / length


def to_x0_eps(output: Tensor, x: Tensor, t: Tensor, process: Process, kind: Prediction) -> tuple[Tensor, Tensor]:
    """Return (x0, ε) `[n, …]` that a prediction `output` at (x, t) stands for; t is `[]` or `[n]`.

    Raises:
        RecipeError: shapes that differ, or a time at which the prediction does not determine both (ε where α = 0, x0
            where σ = 0).
    """
    x0, eps = _solved(output, x, t, process, kind)
    return x0.to(x.dtype), eps.to(x.dtype)


def convert(
    output: Tensor, x: Tensor, t: Tensor, process: Process, *, source: Prediction, target: Prediction
) -> Tensor:
    """Return the prediction `output` `[n, …]` of kind `source` as one of kind `target`; t is `[]` or `[n]`.

    Raises:
        RecipeError: see `to_x0_eps` and `coefficients`.
    """
    if source == target:
        check_prediction(source, process)
        return output
    if target == "x0" and source != "eps":  # x0 alone may exist where ε does not
        return _x0(output, x, t, process, source).to(x.dtype)
    a, b = (spread(value, x) for value in coefficients(target, process, t))
    x0, eps = _solved(output, x, t, process, source)
    return (a * x0 + b * eps).to(x.dtype)


def _system(
    output: Tensor, x: Tensor, t: Tensor, process: Process, kind: Prediction
) -> tuple[Tensor | float, Tensor | float, Tensor, Tensor, Tensor]:
    """Return a, b, α, σ and α b − σ a: what x and the prediction say of (x0, ε)."""
    if output.shape != x.shape:
        raise RecipeError(
            f"a prediction has the shape of its input {list(x.shape)}; got {list(output.shape)}. A network that also "
            "predicts a variance gives twice the channels: split them off first"
        )
    t = t.double()
    alpha, sigma = process.levels(t, x)
    a: Tensor | float
    b: Tensor | float
    if kind == "eps":
        a, b, determinant = 0.0, 1.0, alpha
    elif kind == "x0":
        a, b, determinant = 1.0, 0.0, -sigma
    else:
        a, b = (spread(value, x) for value in coefficients(kind, process, t))
        determinant = alpha * b - sigma * a
    if not float(determinant.abs().min()) > 1e-12:  # cos(π/2) is 6e-17 in float64, not 0
        end = "ε, which needs α > 0" if kind == "eps" else "x0, which needs σ > 0"
        raise RecipeError(
            f"a network that predicts '{kind}' says nothing else at this time: it predicts {end}. Begin a hair inside "
            "the process, or use 'v' or 'velocity', which hold at both ends"
        )
    return a, b, alpha, sigma, determinant


def _x0(output: Tensor, x: Tensor, t: Tensor, process: Process, kind: Prediction) -> Tensor:
    if kind == "x0":
        return output.double()
    _, b, _, sigma, determinant = _system(output, x, t, process, kind)
    return b / determinant * x - sigma / determinant * output


def _solved(output: Tensor, x: Tensor, t: Tensor, process: Process, kind: Prediction) -> tuple[Tensor, Tensor]:
    a, b, alpha, sigma, determinant = _system(output, x, t, process, kind)
    x0 = output if kind == "x0" else b / determinant * x - sigma / determinant * output
    return x0, output if kind == "eps" else alpha / determinant * output - a / determinant * x

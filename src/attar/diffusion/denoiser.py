"""One view over any network `net(x, t, condition)`: what it predicts, on which process, and how it wants its inputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from attar.diffusion.prediction import Prediction, check_prediction, convert, to_x0_eps
from attar.diffusion.process import VE, Process, TrigFlow, spread
from attar.diffusion.view import Condition, View
from attar.errors import RecipeError

Network = Callable[[Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True, eq=False)
class Denoiser(View):
    """A network seen as a generator on its process.

    The network is called as `network(input, label, condition)` and returns a prediction `[n, …]` of the declared kind.

    | prediction  | input                 | label                                                    |
    |-------------|-----------------------|----------------------------------------------------------|
    | `edm`       | x / √(σ² + σ_d²)      | ¼ ln σ                                                   |
    | `trig`      | x / σ_d               | t                                                        |
    | others      | x                     | `process.label(t)`: step k on VPDiscrete, t elsewhere    |

    Labels are `[n]` float32 (or the dtype of x, where that is wider) times `time_scale` (1000 for flow networks that
    count to 1000).
    """

    network: Network
    process: Process
    prediction: Prediction
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.process)

    def output(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Return what the network itself predicts `[n, …]`.

        Raises:
            RecipeError: a time outside the process, or an output of another shape than x.
        """
        return self._output(x, self.process.inside(t.double()), condition)

    def _output(self, x: Tensor, exact: Tensor, condition: Condition) -> Tensor:
        """Return what the network predicts at times that are float64 and inside the process."""
        given, label = x, self.process.label(exact)
        if isinstance(self.process, VE) and self.prediction == "edm":
            length = torch.hypot(exact, torch.full_like(exact, self.process.sigma_data))
            given, label = (x / spread(length, x)).to(x.dtype), 0.25 * exact.log()
        elif isinstance(self.process, TrigFlow) and self.prediction == "trig":
            given = x / self.process.sigma_data
        wide = torch.promote_types(x.dtype, torch.float32)
        output = self.network(given, (label * self.time_scale).to(wide).expand(len(x)), condition)
        if output.shape != x.shape:
            raise RecipeError(
                f"the network was given {list(x.shape)} and answered {list(output.shape)}; a denoiser's output has the "
                "shape of its input (diffusers_network splits off a predicted variance)"
            )
        return output

    def x0_eps(self, x: Tensor, t: Tensor, condition: Condition = None) -> tuple[Tensor, Tensor]:
        """Return the clean sample and the noise `[n, …]`.

        Raises:
            RecipeError: see `output` and `prediction.to_x0_eps`.
        """
        exact = self.process.inside(t.double())
        return to_x0_eps(self._output(x, exact, condition), x, exact, self.process, self.prediction)

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None, *, kind: Prediction) -> Tensor:
        """Return a prediction of any kind; the network's own kind is its output, untouched."""
        exact = self.process.inside(t.double())
        output = self._output(x, exact, condition)
        return convert(output, x, exact, self.process, source=self.prediction, target=kind)

    def x0(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Return the clean sample, also where ε is undetermined."""
        return self.predict(x, t, condition, kind="x0")

    def eps(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Return the noise, also where x0 is undetermined."""
        return self.predict(x, t, condition, kind="eps")


class Repeated(nn.Module):
    """A network that is asked again and again for outputs of one shape, through which nothing will be trained.

    After the first answer, in which a network may fill what it keeps for later with tensors that training can use, it
    answers in PyTorch's inference mode, which spares the book-keeping of versions and views.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.asked = network, False

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the network's answer."""
        if not self.asked:
            self.asked = True
            with torch.no_grad():
                return self.network(*inputs, **named)
        with torch.inference_mode():
            return self.network(*inputs, **named)


def arguments(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the arguments of a module's `forward`."""
    return _arguments(type(module).forward)


@functools.cache  # a network is asked thousands of times, and reading a signature takes as long as some of its layers
def _arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def diffusers_network(module: nn.Module) -> Network:
    """Return a network of diffusers (UNet2D, UNet2DCondition, DiT, PixArt, SD3 …) as `net(x, t, condition)`.

    Conditions are keyword tensors of its `forward` by name, such as `{"encoder_hidden_states": text}`; a single tensor
    stands for `encoder_hidden_states`, or for `class_labels` where it holds integers. A predicted variance (twice the
    channels) is split off.

    Raises:
        RecipeError: a module without `timestep` among its arguments, or a condition that it does not take.
    """
    takes = arguments(module)
    if "timestep" not in takes:
        raise RecipeError(
            f"{type(module).__name__}.forward takes no 'timestep', so it is no network of diffusers; "
            "write a function net(x, t, condition) around it"
        )

    def call(x: Tensor, label: Tensor, condition: Condition) -> Tensor:
        if isinstance(condition, Tensor):
            name = "encoder_hidden_states" if condition.is_floating_point() else "class_labels"
            condition = {name: condition}
        named: dict[str, Any] = dict(condition or {})
        if unknown := sorted(named.keys() - set(takes)):
            raise RecipeError(f"{type(module).__name__} takes no condition {unknown}; it takes {', '.join(takes)}")
        if "return_dict" in takes:
            named["return_dict"] = False
        answer = module(x, timestep=label, **named)
        output: Tensor = answer[0] if isinstance(answer, tuple) else answer
        return output[:, : x.shape[1]] if output.dim() > 1 and output.shape[1] == 2 * x.shape[1] else output

    return call


def readings(
    denoiser: Denoiser, x0: Tensor, rng: torch.Generator, condition: Condition = None
) -> Mapping[Prediction, float]:
    """Return how well the network's output denoises real data when read as each kind: mean squared errors of x0.

    One evaluation on `x0` `[n, …]` with equal noise and data (α = σ, where no reading is trivial).
    """
    process = denoiser.process
    t = process.time_at(torch.tensor(torch.pi / 4, dtype=torch.float64)).to(x0.device)
    eps = torch.randn(x0.shape, generator=rng, dtype=x0.dtype).to(x0.device)
    x = process.diffuse(x0, eps, t).to(x0.dtype)
    with torch.no_grad():
        output = denoiser.output(x, t, condition)
    errors: dict[Prediction, float] = {}
    for kind in get_args(Prediction):
        try:
            check_prediction(kind, process)
        except RecipeError:
            continue
        if (kind == "edm") == (denoiser.prediction == "edm"):  # these networks see scaled inputs
            clean = convert(output, x, t, process, source=kind, target="x0")
            errors[kind] = float((clean - x0).square().mean())
    return errors


def check_reading(denoiser: Denoiser, x0: Tensor, rng: torch.Generator, condition: Condition = None) -> None:
    """Refuse a network whose output denoises real data `[n, …]` much better when read as another prediction.

    Raises:
        RecipeError: another reading has less than half of the declared one's error: an eps network used as v.
    """
    errors = readings(denoiser, x0, rng, condition)
    best = min(errors, key=lambda kind: errors[kind])
    if errors[best] < 0.5 * errors[denoiser.prediction]:
        raise RecipeError(
            f"the network is declared to predict '{denoiser.prediction}', but its output denoises the data better as "
            f"'{best}' (squared error {errors[best]:.3g} instead of {errors[denoiser.prediction]:.3g}); "
            f"set prediction='{best}'"
        )

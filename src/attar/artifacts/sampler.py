"""A sampler: a denoiser, the process it lives on, and how samples are drawn with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from attar import nets
from attar.artifacts.base import Artifact
from attar.artifacts.drawing import Drawing, Encode, Ode
from attar.artifacts.picture import contact_sheet
from attar.data.samples import Samples, numbers, picture
from attar.diffusion.denoiser import Denoiser, Repeated
from attar.diffusion.guidance import Guided
from attar.diffusion.prediction import Prediction, check_prediction
from attar.diffusion.solvers import drawing
from attar.diffusion.specs import AnyProcess
from attar.diffusion.view import Condition, View
from attar.errors import AttarError, RecipeError
from attar.nets.denoiser_specs import DenoiserNet, Extras, Form
from attar.nets.denoisers import told
from attar.nets.initialise import seeded
from attar.spec import spec, to_json

SHOWN = 8  # samples of a condition in the preview
LARGE = 128  # pixels a side, from which on pictures are not enlarged
CHUNK = 512  # samples that go through the network together


@spec
class Reading:
    """What the numbers that a network gives mean, and how samples are drawn with it."""

    process: AnyProcess
    prediction: Prediction
    drawing: Drawing = Ode()
    guidance: float = 1.0  # g of u + g (c − u) that samples are drawn with; 1 is none
    guided: Literal["two-calls", "embedded", "inside"] = "two-calls"  # how: both predictions, told, or in the weights
    told: tuple[float, float] | None = None  # lowest and highest g that the network was told when it learned


class Sampler(Artifact):
    """A generator and how samples `[n, *shape]` are drawn with it.

    Args:
        module: a denoiser, `module(x, label, condition)`.
        net: its spec.
        form: shape of a sample, and its conditions' form.
        reading: process, prediction, how samples are drawn, guidance.
        conditions: names of classes or captions.
        vectors: `[K, width]`, what the network is told of each caption; none where conditions are labels.
        extras: the network's inputs beside time and condition.
        source: where the samples it learned come from.
    """

    kind: ClassVar[str] = "sampler"

    def __init__(
        self,
        module: nn.Module,
        net: Any,
        form: Form,
        reading: Reading,
        *,
        conditions: Sequence[str] = (),
        vectors: Tensor | None = None,
        extras: Extras | None = None,
        source: str = "memory",
    ) -> None:
        super().__init__()
        check_prediction(reading.prediction, reading.process.build())
        self.module, self.net, self.form, self.reading = module, net, form, reading
        self.conditions, self.vectors, self.extras = tuple(conditions), vectors, extras or Extras()
        self.source = source

    @classmethod
    def fresh(
        cls, net: Any, data: Samples, reading: Reading, rng: torch.Generator, *, extras: Extras | None = None
    ) -> Self:
        """Return an untrained sampler for these samples, its weights drawn from a CPU generator."""
        with seeded(torch.Generator()):
            module = net.build(data.form, extras or Extras())
        nets.reset(module, rng)
        return cls(
            module, net, data.form, reading, conditions=data.conditions, vectors=data.vectors, extras=extras,
            source=data.source,
        )  # fmt: skip

    def with_module(self, module: nn.Module, **changes: Any) -> Self:
        """Return a sampler like this one around another module; `changes` are fields of its reading."""
        reading = Reading(**{**{n: getattr(self.reading, n) for n in READ}, **changes})
        return type(self)(
            module, self.net, self.form, reading, conditions=self.conditions, vectors=self.vectors, extras=self.extras,
            source=self.source,
        )  # fmt: skip

    def copy(self, *, extras: Extras | None = None, **changes: Any) -> Self:
        """Return a sampler with a copy of the weights, what `extras` add being zero; `changes` as in `with_module`."""
        wanted = extras or self.extras
        if wanted == self.extras:
            return self.with_module(copy.deepcopy(self.module), **changes)
        with seeded(torch.Generator()):
            module = self.net.build(self.form, wanted)
            nets.reset(module, torch.Generator().manual_seed(0))
        loaded = module.load_state_dict(self.module.state_dict(), strict=False)
        if loaded.unexpected_keys:
            raise RecipeError(f"inputs of a network cannot be taken away; it has {to_json(self.extras)}")
        made = self.with_module(module.to(next(self.module.parameters()).device), **changes)
        made.extras = wanted
        return made

    def merged(self) -> Sampler:
        """Return a sampler whose weights are all its own: this one, unless it has adapters."""
        return self

    # ------------------------------------------------------------------ as a generator

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.form.shape)

    @property
    def steps(self) -> int:
        """The steps that samples are drawn in by default."""
        return int(self.reading.drawing.steps)

    @property
    def null(self) -> Tensor | None:
        """What stands for no condition: the label K (`[]`), or zeros `[width]`; none where nothing is conditioned."""
        device = next(self.module.parameters()).device
        if self.form.width:
            return torch.zeros(self.form.width, device=device)
        return torch.tensor(self.form.labels, device=device) if self.form.labels else None

    @property
    def denoiser(self) -> Denoiser:
        """The network as a view, unguided: what a student asks of its teacher."""
        process = self.reading.process
        return Denoiser(self.module, process.build(), self.reading.prediction, process.time_scale * self.net.time_scale)

    def view(self, guidance: float | Tensor | None = None) -> View:
        """Return the network as a view with two-call guidance g (`[]` or `[n]`); none means the sampler's own.

        Raises:
            RecipeError: guidance of a network without conditions, or other than what one took over.
        """
        scale = self.reading.guidance if guidance is None else guidance
        if self.reading.guided == "inside" and scale != self.reading.guidance:
            raise RecipeError(
                f"this network was distilled with a guidance of {self.reading.guidance:g} inside, and takes no other; "
                "leave it out"
            )
        if self.reading.guided != "two-calls" or (not isinstance(scale, Tensor) and scale == 1.0):
            return self.denoiser
        return Guided(self.denoiser, self.null, scale, "g")

    def mean_velocity(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition = None) -> Tensor:
        """Return u(x, t, r) `[n, …]`, what a network with a second time predicts; t and r are `[]` or `[n]`."""
        view = self.denoiser
        second = (view.process.label(r.double()) * view.time_scale).to(x.dtype).expand(len(x))
        return view.output(x, t, told(condition, second=second))

    def condition_of(self, given: Any, n: int, rng: torch.Generator) -> Condition:
        """Return what the network is told: names, numbers of names `[n]` (−1 is none), vectors, or at random for None.

        Raises:
            DataError: an unknown name.
            RecipeError: a condition for a network without, or of another length than n.
        """
        if not self.form.labels and not self.form.width:
            if given is not None:
                raise RecipeError("this sampler was trained without conditions, and one was given")
            return None
        if isinstance(given, Mapping):
            return given
        count = len(self.conditions) or self.form.labels
        if given is None:
            given = torch.randint(count, (n,), generator=rng)
        elif isinstance(given, str):
            given = numbers([given], self.conditions).expand(n)
        elif not isinstance(given, Tensor):
            listed = list(given) if isinstance(given, Sequence) else [given] * n
            named = bool(listed) and isinstance(listed[0], str)
            given = numbers(listed, self.conditions) if named else torch.tensor(listed)
        if len(given) != n:
            raise RecipeError(f"one condition for each of {n} samples is expected; got {len(given)}")
        if not given.is_floating_point() and not bool(((given >= -1) & (given <= count)).all()):
            raise RecipeError(f"names are numbered from 0 to {count - 1}, and −1 is none; got {given.tolist()[:8]}")
        if given.is_floating_point() or not self.form.width:
            return given if given.is_floating_point() else torch.where(given < 0, self.form.labels, given)
        if self.vectors is None:
            raise RecipeError("this sampler knows no captions by name; give vectors [n, width]")
        return torch.cat([self.vectors, torch.zeros_like(self.vectors[:1])])[given.to(self.vectors.device)]

    @torch.no_grad()
    def __call__(
        self,
        n: int,
        condition: Any = None,
        *,
        steps: int | None = None,
        rng: torch.Generator | None = None,
        guidance: float | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return `n` samples `[n, *shape]`, float32 on the network's device.

        Args:
            n: how many.
            condition: names, numbers of names `[n]` (−1 is none) or vectors `[n, width]`; None: names at random.
            steps: of drawing; none: the sampler's own.
            rng: CPU generator of noise and of what is at random; none: one seeded with 0.
            guidance: g of u + g (c − u); none: the sampler's own.
            noise: unit noise `[n, *shape]` to begin with, instead of drawn; samples, where their noise is asked for.

        Raises:
            AttarError: see `condition_of` and `drawing`.
            RecipeError: nothing to encode, no sample or step, noise of another shape, or guidance that the network
                does not know.
        """
        if noise is None:
            self.refuse_encoding()
        steps = self.steps if steps is None else steps
        if n < 1 or steps < 1 or steps != int(steps):
            raise RecipeError(f"at least one sample and one step are drawn, both whole; got n={n}, steps={steps}")
        if noise is not None and tuple(noise.shape) != (n, *self.shape):
            raise RecipeError(f"noise of the shape {[n, *self.shape]} is expected; got {list(noise.shape)}")
        rng = rng or torch.Generator().manual_seed(0)
        device = next(self.module.parameters()).device
        noise = torch.randn(n, *self.shape, generator=rng) if noise is None else noise
        told_of = _moved(self.condition_of(condition, n, rng), device)
        scale = self.reading.guidance if guidance is None else guidance
        lowest, highest = self.reading.told or (scale, scale)
        if not lowest <= scale <= highest:
            raise RecipeError(f"this network was told guidance from {lowest:g} to {highest:g} only; got {scale:g}")
        if was_training := self.module.training:  # to go through all layers takes as long as a step of drawing
            self.module.eval()
        parts = []
        for first in range(0, n, CHUNK):
            rows = slice(first, min(n, first + CHUNK))
            some = _rows(told_of, rows, n)
            if self.reading.guided == "embedded":
                w = torch.full((rows.stop - first,), scale - 1.0, device=device)
                some = told(some, guidance=w)
            drawer = copy.copy(self)
            drawer.module = Repeated(self.module)
            parts.append(
                self.reading.drawing.draw(
                    drawer.view(scale), noise[rows].to(device), some, steps, drawing(rng),
                    mean_velocity=drawer.mean_velocity,
                )
            )  # fmt: skip
        if was_training:
            self.module.train()
        return torch.cat(parts)

    def refuse_encoding(self) -> None:
        """Refuse to draw where noise is found instead of samples.

        Raises:
            RecipeError: it is.
        """
        if isinstance(self.reading.drawing, Encode):
            raise RecipeError(
                "this network finds the noise of samples and draws none; in Python, call it with the samples as noise="
            )

    @property
    def pipeline(self) -> Any:
        """The `Pipeline` that the network was taken out of, loaded once a process; none where it came out of none.

        Raises:
            AttarError: it cannot be loaded.
        """
        from attar.artifacts.pipeline import Pipeline  # which makes samplers, so this module comes first

        name = getattr(self.net, "pipeline", "")
        return Pipeline.named(name) if name else None

    def picture(self, x: Tensor) -> Tensor:
        """Return samples `[n, C, H, W]` as pixels in [0, 1], latents of a pipeline decoded by it.

        Raises:
            DataError: samples that are no images.
            AttarError: the pipeline cannot be loaded.
        """
        pixels: Tensor = picture(x, self.shape) if self.pipeline is None else self.pipeline.decode(x)
        return pixels

    # ------------------------------------------------------------------ as an artifact

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, and the captions' vectors."""
        own = {f"net.{name}": tensor for name, tensor in self.module.state_dict().items()}
        return own if self.vectors is None else {**own, "vectors": self.vectors}

    def about(self) -> dict[str, Any]:
        """Return how the network is built and read."""
        return {
            "net": to_json(getattr(self.module, "as_built", self.net)),  # a checkpoint may be gone one day
            "form": to_json(self.form),
            "reading": to_json(self.reading),
            "extras": to_json(self.extras),
            "conditions": list(self.conditions),
            "source": self.source,
        }

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the network around its weights, on no memory before.

        Raises:
            ValueError: a weight has another type than the network's, or the network is fetched from elsewhere.
            RuntimeError: the weights are not those of the network.
        """
        if "adapter" in about:
            from attar.artifacts.adapted import AdaptedSampler  # which is a sampler, so this module comes first

            restored: Any = AdaptedSampler.restored(about, tensors)
            return restored
        net = TypeAdapter(DenoiserNet).validate_python(about["net"])
        form = TypeAdapter(Form).validate_python(about["form"])
        reading = TypeAdapter(Reading).validate_python(about["reading"])
        extras = TypeAdapter(Extras).validate_python(about["extras"])
        if getattr(net, "name", ""):
            raise ValueError("the network is the one of a checkpoint elsewhere, and a file is to say how it is built")
        with torch.device("meta"):
            module = net.build(form, extras)
        own = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
        for name, expected in module.state_dict().items():
            if name in own and own[name].dtype != expected.dtype:
                raise ValueError(f"'{name}' is {own[name].dtype}, not {expected.dtype}")
        module.load_state_dict(own, assign=True)
        return cls(
            module.eval(), net, form, reading, conditions=tuple(about["conditions"]), vectors=tensors.get("vectors"),
            extras=extras, source=about["source"],
        )  # fmt: skip

    def preview(self, path: Path) -> None:
        """Write a sheet with a row of samples for each of the first conditions, where samples are images."""
        try:
            piped = self.pipeline is not None  # whose pictures are large and slow
            if not piped and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
                return
            rows, columns = min(len(self.conditions), 4 if piped else 10), 2 if piped else SHOWN
            asked = torch.arange(rows).repeat_interleave(columns) if rows else None
            pixels = self.picture(self(rows * columns or columns**2, asked))
        except AttarError:  # such as a network that needs what no sheet can tell it
            return
        contact_sheet(pixels, columns=columns, scale=1 if pixels.shape[-1] > LARGE else None).save(path)


READ = ("process", "prediction", "drawing", "guidance", "guided", "told")  # fields of `Reading`


def _moved(condition: Condition, device: torch.device) -> Condition:
    if isinstance(condition, Mapping):
        return {name: value.to(device) for name, value in condition.items()}
    return None if condition is None else condition.to(device)


def _rows(condition: Condition, rows: slice, n: int) -> Condition:
    if isinstance(condition, Mapping):
        return {name: value[rows] if len(value) == n else value for name, value in condition.items()}
    return None if condition is None else condition[rows]

"""How a sampler is measured: the same noise and conditions for every arm, distances to the data, time and calls."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from attar.artifacts.drawing import Ode, Signal, grid_of
from attar.artifacts.sampler import Sampler
from attar.data import Images
from attar.data.checkerboard import Checkerboard
from attar.data.samples import ImageSamples, PointSamples, Samples
from attar.diffusion import Flow, euler, integrate
from attar.diffusion.samplers import start
from attar.errors import AttarError, RecipeError
from attar.metrics import generative
from attar.metrics.work import WorkMeter
from attar.run import keys
from attar.spec import spec
from attar.train.judges import Features, Judge

REACH = 5.0  # standard deviations of a mode within which a point belongs to it
POINTS, PICTURES = 10_000, 1_000  # samples of an arm, where the protocol does not say
PAIRED, PAIRED_PICTURES = 5_000, 4_000  # whose pairs are compared, at most: time grows with their square
WARM = 2  # samples drawn before the clock is read


def _listed(value: Any) -> Any:
    """Let `steps=2` and `steps=1,2,4` stand for lists, as they are typed on a command line."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


def _named(value: Any) -> Any:
    """Let `prompts=3` and `prompts=3,7` stand for lists of names, which may be digits."""
    listed = _listed(value)
    return [str(one) if isinstance(one, int) else one for one in listed] if isinstance(listed, list | tuple) else listed


@spec
class Generation:
    """How a sampler is measured."""

    samples: int | None = Field(None, ge=16)  # of an arm; none: 10,000 points or 1,000 pictures
    steps: Annotated[tuple[int, ...], BeforeValidator(_listed)] = (1, 2, 4)  # of the sampler, beside its own number
    teacher_steps: int = Field(32, ge=1)  # that its teacher draws in
    teacher_guidance: float | None = Field(None, ge=0)  # g of u + g (c − u); none: what the student was made with
    reference_steps: int = Field(50, ge=1)  # of Heun's method, two calls each, to the endpoints that all are held to
    features: Features | None = None  # in which pictures are compared; none: classifier, efficientnet-lite0 for texts
    directions: int = Field(128, ge=1)  # of the sliced distance of points
    prompts: Annotated[tuple[str, ...], BeforeValidator(_named)] = ()  # texts or classes that are shown; none: some


@dataclasses.dataclass(frozen=True)
class Asked:
    """What every arm is asked for: the same noise and the same conditions.

    Attributes:
        noise: unit noise `[n, *shape]`.
        which: numbers of the conditions `[n]`, or none.
        seed: of whatever else an arm draws.
    """

    noise: Tensor
    which: Tensor | None
    seed: int

    @classmethod
    def of(cls, data: Samples, n: int, seed: int, shape: tuple[int, ...] | None = None) -> Asked:
        """Return noise for `n` samples of the data's shape or another, with conditions as often as data have them."""
        noise = torch.randn(n, *(shape or data.shape), generator=keys.generator(seed, ("generate",), "noise", ()))
        which = data.draw_named(n, keys.generator(seed, ("generate",), "conditions", ()))[1]
        return cls(noise, which if data.conditions else None, seed)

    def __len__(self) -> int:
        return len(self.noise)

    def draw(self, sampler: Sampler, steps: int | None = None, guidance: float | None = None) -> Tensor:
        """Return a sampler's samples `[n, *shape]` on the CPU."""
        rng = keys.generator(self.seed, ("generate",), "draw", ())
        return sampler(len(self), self.which, steps=steps, guidance=guidance, rng=rng, noise=self.noise).cpu()

    def few(self, n: int) -> Asked:
        """Return the first `n`."""
        return Asked(self.noise[:n], None if self.which is None else self.which[:n], self.seed)


def drawn(sampler: Sampler, asked: Asked, steps: int, guidance: float | None = None) -> tuple[Tensor, dict[str, Any]]:
    """Return an arm's samples, and the steps, network evaluations and seconds that one of them took."""
    asked.few(WARM).draw(sampler, steps, guidance)
    meter = WorkMeter()
    meter.watch("sampler", sampler.module)
    with meter:
        began = time.perf_counter()
        x = asked.draw(sampler, steps, guidance)
        seconds = time.perf_counter() - began
    calls = meter.nfe("sampler", len(asked))
    return x, {"steps": steps, "evaluations": calls, "seconds": seconds / len(asked), "samples": len(asked)}


def endpoints(teacher: Sampler, asked: Asked, steps: int, guidance: float | None = None) -> Tensor:
    """Return where the teacher's ODE leads from the noise, by Heun's method `[n, *shape]`."""
    return asked.draw(teacher.with_module(teacher.module, drawing=Ode(solver="heun", steps=steps)), steps, guidance)


def straightness(sampler: Sampler, asked: Asked, steps: int, guidance: float | None = None) -> float | None:
    """Return how far the ways of a sampler's ODE are from straight lines (0), in `steps` steps of Euler.

    None where it follows no ODE of flow matching, on whose clock straight ways are even.
    """
    process = sampler.reading.process.build()
    if not isinstance(process, Flow) or not isinstance(sampler.reading.drawing, Ode):
        return None
    rng = keys.generator(asked.seed, ("generate",), "draw", ())
    device = next(sampler.module.parameters()).device
    told = sampler.condition_of(asked.which, len(asked), rng)
    told = told.to(device) if isinstance(told, Tensor) else told
    times = grid_of(process, steps)
    x = start(process, times[0], asked.noise.to(device))
    states = [x]
    with torch.no_grad():
        view = sampler.view(guidance)
        integrate(view, x, times, told, step=euler, callback=lambda _, state: states.append(state))
    return generative.straightness(torch.stack(states), times)


Score = Callable[[Tensor, Asked], dict[str, float]]


def point_score(data: Samples, protocol: Generation, asked: Asked, reference: Tensor | None) -> Score:
    """Return what scores points: sliced distance, energy, modes, and error to the reference endpoints where given."""
    real = real_points(data, asked, "real")
    modes = len(data.conditions)
    shares = asked.which.bincount(minlength=modes) if asked.which is not None else None

    def score(x: Tensor, of: Asked) -> dict[str, float]:
        directions = keys.generator(asked.seed, ("generate",), "directions", ())
        told = {
            "sliced_wasserstein": generative.sliced_wasserstein(x, real, directions, protocol.directions),
            "energy": generative.energy_distance(x[:PAIRED], real[:PAIRED]),
        }
        found = modes_of(data, x)
        if found is not None:
            told["coverage"] = generative.mode_coverage(found, modes, shares)
            if of.which is not None:
                told["accuracy"] = (found == of.which).double().mean().item()
        if reference is not None:
            told["endpoint_error"] = generative.endpoint_error(x, reference)
        return told

    return score


def real_points(data: Samples, asked: Asked, name: str) -> Tensor:
    """Return as many real points as are asked for `[n, d]`, of each condition as many: chance in that hides the rest.

    `name` is that of the stream they are drawn from.
    """
    rng = keys.generator(asked.seed, ("generate",), name, ())
    if asked.which is None:
        return data.draw_named(len(asked), rng)[0]
    found: list[list[Tensor]] = [[] for _ in data.conditions]
    wanted = asked.which.bincount(minlength=len(found)).tolist()
    while any(len(some) < count for some, count in zip(found, wanted, strict=True)):
        x, which = data.draw_named(len(asked), rng)
        for number, some in enumerate(found):
            some.extend(x[which == number][: wanted[number] - len(some)])
    return torch.stack([found[number].pop() for number in asked.which.tolist()])


def modes_of(data: Samples, x: Tensor) -> Tensor | None:
    """Return the condition that each point visibly has `[n]`, −1 for none; none where points show no modes."""
    if isinstance(data, Checkerboard):
        return data.square_of(x)
    if not isinstance(data, PointSamples):
        return None
    mixture = data.mixture
    nearest = generative.nearest_modes(x, mixture.means)
    reach = REACH * mixture.stds[nearest]
    away = (x.double() - mixture.means[nearest]).norm(dim=1) > reach
    return mixture.labels[nearest].masked_fill(away, -1)


def picture_score(judge: Judge, real: Tensor) -> Score:
    """Return what scores pictures against real ones `[m, C, H, W]` in [-1, 1], in the features of a judge.

    Fréchet distance; of 4,000 of both, kernel distance (times 1000), precision, recall, density and coverage; high
    frequencies over those of the real ones, and the share taken for what was asked.
    """
    seen = judge.features(real)
    some = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:PAIRED_PICTURES]]

    def score(x: Tensor, of: Asked) -> dict[str, float]:
        found = judge.features(x)
        few = found[:PAIRED_PICTURES]
        told = {
            "frechet": generative.frechet_distance(found, seen),
            "kernel": 1000 * generative.kernel_distance(few, some),
            **generative.manifold_scores(some, few),
            "high_frequencies": generative.high_frequency_ratio(x.clamp(-1, 1), real),
        }
        if of.which is not None:
            told["accuracy"] = judge.right(x, of.which).double().mean().item()
        return told

    return score


def reference_pictures(data: ImageSamples, test: Images | None) -> tuple[Tensor, str]:
    """Return the real pictures to compare with in [-1, 1], and in words which: of the test set, where there is one.

    Captions are asked for by name, and those of a test set were never seen: there it is the training pictures.
    """
    if test is None or data.vectors is not None:
        return data.images.unit().cpu() * 2 - 1, "training pictures"
    return test.unit().cpu() * 2 - 1, "test pictures"


@dataclasses.dataclass(frozen=True)
class Arm:
    """A row of a comparison: who draws, in how many steps, with which guidance (none: its own)."""

    name: str
    sampler: Sampler
    steps: int
    guidance: float | None = None


def arms_of(sampler: Sampler, teacher: Sampler | None, protocol: Generation, guidance: float | None) -> list[Arm]:
    """Return the arms: the sampler in each number of steps, its own included, and its teacher."""
    one = isinstance(sampler.reading.drawing, Signal)  # which draws in one step, whatever it is asked
    counts = [1] if one else sorted({*protocol.steps, sampler.steps})
    if counts[0] < 1:
        raise RecipeError(f"a sampler draws in at least one step; got steps={counts[0]}")
    arms = [Arm(f"{count} step{'s' * (count > 1)}", sampler, count) for count in counts]
    if teacher is not None:
        arms.append(Arm(f"teacher, {protocol.teacher_steps} steps", teacher, protocol.teacher_steps, guidance))
    return arms


def measured(arms: list[Arm], asked: Asked, score: Score) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a row for each arm, and why those that could not be drawn could not."""
    rows, refused = [], {}
    for arm in arms:
        try:
            x, row = drawn(arm.sampler, asked, arm.steps, arm.guidance)
            rows.append({"name": arm.name, **row, **score(x, asked), "bytes": arm.sampler.bytes})
        except AttarError as error:
            refused[arm.name] = str(error)
    if not rows:
        raise RecipeError(f"nothing could be drawn: {next(iter(refused.values()))}")
    return rows, refused


def shown(
    arms: list[Arm], condition: Tensor | None, each: int, shape: tuple[int, ...], seed: int
) -> Mapping[str, Tensor]:
    """Return samples to look at, `[rows, each, *shape]` for the number of each arm: one noise a row and place.

    `condition` is what a network is told in each row (labels `[rows]` or vectors `[rows, width]`), or none for one row.
    """
    rows = 1 if condition is None else len(condition)
    noise = torch.randn(rows, each, *shape, generator=keys.generator(seed, ("generate",), "shown", ()))
    told = None if condition is None else condition.repeat_interleave(each, 0)
    made = {}
    for number, arm in enumerate(arms):
        rng = keys.generator(seed, ("generate",), "draw", ())
        flat = noise.flatten(0, 1)
        x = arm.sampler(len(flat), told, steps=arm.steps, guidance=arm.guidance, rng=rng, noise=flat)
        made[f"arm.{number}"] = x.cpu().unflatten(0, (rows, each))
    return made

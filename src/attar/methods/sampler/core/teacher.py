"""Teachers of samplers: a trained one, the closed form of the data, or one that is trained on the spot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.artifacts import load
from attar.artifacts.drawing import Ode
from attar.artifacts.pipeline import Pipeline
from attar.artifacts.sampler import Sampler
from attar.data import Samples
from attar.data.latents import LatentSamples
from attar.diffusion import Guided
from attar.diffusion.process import Process
from attar.diffusion.view import View
from attar.errors import AttarError, DataError, RecipeError
from attar.nets.denoiser_specs import Extras
from attar.run import Run
from attar.spec import spec

EXACT = "exact"


class GivenTeacher:
    """What a user names as teacher: a sampler, a pipeline of diffusers, or the exact denoiser of a closed form.

    Args:
        given: a `Sampler`, a `Pipeline`, or `exact`.
    """

    kind = "teacher"
    example = "a sampler's run or artifact folder, exact, or hf:NAME"

    def __init__(self, given: Sampler | Pipeline | str) -> None:
        self.given = given

    @classmethod
    def of(cls, value: Any) -> GivenTeacher:
        """Return the teacher that a value stands for: a run's or artifact's folder, a `Sampler`, `hf:NAME` or `exact`.

        `hf:NAME` is a pipeline of diffusers, by hub name or folder.

        Raises:
            AttarError: it stands for none.
        """
        if isinstance(value, GivenTeacher):
            return value
        if isinstance(value, str) and value == EXACT:
            return cls(EXACT)
        if isinstance(value, str) and value.startswith("hf:"):
            return cls(Pipeline.named(value.removeprefix("hf:")))
        if isinstance(value, str | Path):
            value = load(value)
        if not isinstance(value, Sampler):
            kind = getattr(value, "kind", type(value).__name__)
            raise AttarError(f"a {kind} cannot teach a sampler; name a run of diffusion, or teacher=exact for points")
        return cls(value)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, or the word `exact`."""
        return self.given if isinstance(self.given, str) else self.given.fingerprint


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher that is ready: frozen, on the run's device, in evaluation mode."""

    view: View  # unguided
    null: Tensor | None  # what stands for no condition
    sampler: Sampler | None  # what a student may begin as; none: a closed form

    @property
    def process(self) -> Process:
        """The process that the teacher lives on."""
        return self.view.process

    def guided(self, scale: float | Tensor) -> View:
        """Return the teacher with guidance g of u + g (c − u), `[]` or `[n]`; two calls, unless all of it is 1.

        Raises:
            RecipeError: a teacher without a null condition.
        """
        if bool((torch.as_tensor(scale) == 1).all()):
            return self.view
        return Guided(self.view, self.null, scale, "g")


def seen(data: Samples, given: GivenTeacher | None) -> Samples:
    """Return the data as a teacher sees them: latents for a pipeline, themselves for all others."""
    return given.given.seen(data) if given is not None and isinstance(given.given, Pipeline) else data


def ready(run: Run, data: Samples, given: GivenTeacher | None, teaching: Any) -> Teacher:
    """Return the teacher that was given, or one trained as a stage by `teaching`, a method.

    Raises:
        DataError: it draws samples of another shape or with other conditions than the data's, or has no closed form.
        RecipeError: a student that no solver can follow, or that is told more than time and condition.
    """
    if given is not None and given.given == EXACT:
        exact = data.exact(teaching.process.build())
        if exact is None:
            raise DataError(f"{data.source} has no closed form, so nothing is exact; name a run of diffusion instead")
        return Teacher(exact, None if data.null is None else data.null.to(run.device), None)
    made = given.given if given is not None else run.stage("teacher", teaching, data=data)
    if isinstance(made, Pipeline):
        data = data if isinstance(data, LatentSamples) else made.seen(data)
        made = made.sampler(data)
    assert isinstance(made, Sampler)
    if made.form != data.form or (made.conditions and made.conditions != data.conditions):
        raise DataError(
            f"the teacher draws {list(made.shape)} with {len(made.conditions)} conditions, {data.source} has "
            f"{list(data.shape)} with {len(data.conditions)}; take a teacher trained on this data"
        )
    if not isinstance(made.reading.drawing, Ode) or made.extras != Extras():
        raise RecipeError(
            f"the teacher is a student itself that draws by '{made.reading.drawing.kind}', or is told guidance or a "
            "second time, and no solver can follow it; take the run of diffusion that taught it"
        )
    made.module.to(run.device).eval().requires_grad_(False)
    return Teacher(made.denoiser, made.null, made)


@spec
class TeacherGuidance:
    """Guidance of the teacher that a student takes over, in the convention g of u + g (c − u), which is off at 1."""

    scale: float = Field(1.0, ge=0)  # g; w + 1 in the convention of LCM and guided distillation
    highest: float | None = None  # g is drawn evenly from `scale` to this, for each sample
    embedded: bool = False  # the student is told g − 1 by an input that is zero at first

    @model_validator(mode="after")
    def _ordered(self) -> TeacherGuidance:
        if self.highest is not None and self.highest < self.scale:
            raise ValueError(f"guidance is drawn from scale={self.scale} to highest={self.highest}: that is no range")
        return self

    def draw(self, n: int, rng: torch.Generator) -> Tensor | float:
        """Return g `[n]`, or one number where none is drawn and none embedded."""
        if self.highest is None:
            return torch.full((n,), self.scale) if self.embedded else self.scale
        return self.scale + (self.highest - self.scale) * torch.rand(n, generator=rng)

    @property
    def usual(self) -> float:
        """The g that samples of the student are drawn with: the middle of the range, where there is one."""
        return self.scale if self.highest is None else (self.scale + self.highest) / 2

    @property
    def reading(self) -> dict[str, Any]:
        """How a student that took it over is read: fields of `Reading`."""
        if self.embedded:
            told = (self.scale, self.scale if self.highest is None else self.highest)
            return {"guidance": self.usual, "guided": "embedded", "told": told}
        inside = self.usual != 1.0
        return {"guidance": self.usual, "guided": "inside" if inside else "two-calls", "told": None}

    def check(self, data: Samples) -> None:
        """Refuse guidance of data without conditions.

        Raises:
            RecipeError: there is nothing to guide towards.
        """
        if not data.conditions and (self.scale != 1.0 or self.highest is not None or self.embedded):
            raise RecipeError(
                f"{data.source} has no conditions, so there is nothing to guide towards; leave guidance out"
            )

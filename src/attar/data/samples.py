"""What generators learn: samples of one shape, and what each of them is a sample of."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attar.data import sources
from attar.data.images import Images
from attar.data.uri import POINTS
from attar.diffusion.mixture import ExactView, Mixture
from attar.diffusion.process import Process
from attar.diffusion.view import Condition, View
from attar.errors import DataError, did_you_mean
from attar.nets.denoiser_specs import Form
from attar.spec import digest

MEASURED = 4096  # samples whose standard deviation stands for that of all


class Samples(ABC):
    """A source of samples `[n, *shape]` with their conditions; images are in [-1, 1], points in their own units.

    A condition is a class label (int64 `[n]`, 0 … K − 1), or a vector (float32 `[n, width]`, such as the embedding of a
    caption), or nothing. `null` stands for no condition: the label K, or a row of zeros.

    Attributes:
        shape: of one sample.
        conditions: names of the classes, or captions; empty where nothing is told of samples.
        vectors: `[K, width]` float32, the condition vector of each caption; none where conditions are labels.
        source: where the samples come from, a URI or a few words.
    """

    kind = "samples"
    example = "a URI, as digits, ring or folder:PATH"
    shape: tuple[int, ...]
    conditions: tuple[str, ...] = ()
    vectors: Tensor | None = None
    source: str = "memory"

    @classmethod
    def of(cls, value: Any) -> Samples:
        """Return the samples that a value stands for: `ring`, a mixture, or images (of a source: its training part).

        Captions are the conditions of pictures that have some, as emoji have; the classes are those of others.

        Raises:
            DataError: it stands for none.
        """
        if isinstance(value, Samples):
            return value
        if isinstance(value, Mixture):
            return PointSamples(value)
        if isinstance(value, str) and value.strip() in POINTS:
            return _points(value.strip())
        images = value if isinstance(value, Images) else sources.resolve(value).train
        return _captioned(images) if getattr(images, "captions", ()) else ImageSamples(images)

    @abstractmethod
    def draw_named(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `n` samples `[n, *shape]` float32 and the numbers of their conditions' names, int64 `[n]`."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of what is drawn from, and of what is told of it."""

    def draw(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return `n` samples `[n, *shape]` float32 and their conditions, all on the CPU; draws are independent."""
        x0, which = self.draw_named(n, rng)
        return x0, self.condition(which)

    def draw_conditions(self, n: int, rng: torch.Generator) -> Tensor | None:
        """Return the conditions of `n` samples drawn as `draw` does."""
        return self.condition(self.draw_named(n, rng)[1]) if self.conditions else None

    def condition(self, which: Tensor) -> Tensor | None:
        """Return what networks are told for the names numbered `which` `[n]`, −1 for none; none without conditions."""
        if not self.conditions:
            return None
        if self.vectors is None:
            return torch.where(which < 0, len(self.conditions), which)
        return torch.cat([self.vectors, torch.zeros_like(self.vectors[:1])])[which]

    def numbers(self, names: Sequence[str]) -> Tensor:
        """Return the numbers `[n]` of conditions by name.

        Raises:
            DataError: a name that no condition has.
        """
        return numbers(names, self.conditions)

    @property
    def null(self) -> Tensor | None:
        """What stands for no condition: the label K (`[]`), or zeros `[width]`; none where nothing is conditioned."""
        if not self.conditions:
            return None
        return torch.tensor(len(self.conditions)) if self.vectors is None else torch.zeros_like(self.vectors[0])

    @property
    def form(self) -> Form:
        """What a denoiser must know: the shape, and the number of labels or the width of condition vectors."""
        if self.vectors is not None:
            return Form(shape=self.shape, width=self.vectors.shape[1])
        return Form(shape=self.shape, labels=len(self.conditions))

    @cached_property
    def sigma_data(self) -> float:
        """Standard deviation of the numbers in a sample, from 4,096 samples of a fixed seed."""
        return float(self.draw_named(MEASURED, torch.Generator().manual_seed(0))[0].double().std())

    def exact(self, process: Process) -> View | None:
        """Return the data as a generator without error, where it has a closed form; its conditions are those here."""
        return None

    def picture(self, x: Tensor) -> Tensor:
        """Return samples `[n, C, H, W]` as pixels in [0, 1].

        Raises:
            DataError: samples that are no images.
        """
        return picture(x, self.shape)

    def to(self, device: torch.device | str) -> Samples:
        """Return the samples with their pictures on `device`, for the networks that look at them; draws stay here."""
        return self


class ImageSamples(Samples):
    """Images as samples in [-1, 1]; their conditions are their classes, or captions as labels or as vectors.

    Args:
        images: what is drawn from, with replacement.
        captions: names of conditions instead of the classes.
        which: int64 `[N]`, the caption of each image.
        vectors: float `[captions, width]`, what networks are told of each caption; none: its number.

    Raises:
        DataError: whitened images, or captions without `which`.
    """

    def __init__(
        self,
        images: Images,
        *,
        captions: Sequence[str] | None = None,
        which: Tensor | None = None,
        vectors: Tensor | None = None,
    ) -> None:
        if images.whitening is not None:
            raise DataError(f"generators learn pixels, and {images.source} is whitened; leave ?zca out of its URI")
        self.images, self.source = images, images.source
        self.shape = (images.channels, images.size, images.size)
        self.conditions = tuple(images.classes if captions is None else captions)
        self.which = images.labels if which is None else which
        self.vectors = None if vectors is None else vectors.float()
        if (captions is not None and which is None) or self.which.shape != images.labels.shape:
            raise DataError(f"captions need which [{len(images)}], the number of each image's caption")
        if vectors is not None and (vectors.dim() != 2 or len(vectors) != len(self.conditions)):
            raise DataError(
                f"{len(self.conditions)} captions need one vector each, [{len(self.conditions)}, width]; got "
                f"{list(vectors.shape)}"
            )

    def draw_named(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `n` images `[n, C, H, W]` in [-1, 1], drawn with replacement, and the numbers of their names."""
        chosen = torch.randint(len(self.images), (n,), generator=rng)
        return self.images.unit(chosen).cpu() * 2 - 1, self.which.cpu()[chosen]

    def to(self, device: torch.device | str) -> Samples:
        """Return the samples with their pictures on `device`, for the networks that look at them; draws stay here."""
        moved = copy.copy(self)
        moved.images = self.images.to(device)
        return moved

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images, the captions and their vectors."""
        told = [] if self.vectors is None else self.vectors.double().flatten().tolist()
        return digest([self.images.fingerprint, list(self.conditions), self.which.tolist(), told])


class PointSamples(Samples):
    """Points of a closed-form mixture, drawn without end; a component's class is its condition.

    Args:
        mixture: whose denoiser, scores and flows are known exactly.
        source: its name.
    """

    def __init__(self, mixture: Mixture, source: str = "memory") -> None:
        self.mixture, self.source = mixture, source
        self.shape = (mixture.means.shape[1],)
        self.conditions = tuple(f"mode {label}" for label in range(int(mixture.labels.max()) + 1))

    def draw_named(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `n` points `[n, d]` and their classes `[n]`, each component as often as its weight says."""
        mixture = self.mixture
        chosen = torch.multinomial(mixture.weights, n, replacement=True, generator=rng)
        noise = torch.randn(n, *self.shape, generator=rng, dtype=mixture.means.dtype)
        return (mixture.means[chosen] + mixture.stds[chosen, None] * noise).float(), mixture.labels[chosen]

    def exact(self, process: Process) -> View:
        """Return the mixture's exact denoiser; the null label stands for any class, as none does."""
        return Labelled(self.mixture.view(process), len(self.conditions))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the mixture."""
        mixture = self.mixture
        parts = (mixture.means, mixture.stds, mixture.weights, mixture.labels)
        return digest(["mixture", *(part.tolist() for part in parts)])


@dataclass(frozen=True, eq=False)
class Labelled(View):
    """A mixture's exact denoiser, told labels as networks are: `null` stands for any class."""

    view: ExactView
    null: int

    @property
    def process(self) -> Process:  # type: ignore[override]
        """Return the process of the mixture's view."""
        return self.view.process

    def x0_eps(self, x: Tensor, t: Tensor, condition: Condition = None) -> tuple[Tensor, Tensor]:
        """Return E[x0 | x] and E[ε | x] `[n, d]`."""
        if isinstance(condition, Tensor):
            condition = torch.where(condition == self.null, -1, condition)
        return self.view.x0_eps(x, t, condition)


def _points(name: str) -> Samples:
    if name == "ring":
        return PointSamples(Mixture.ring(), source=name)
    from attar.data.checkerboard import Checkerboard

    return Checkerboard()


def _captioned(images: Any) -> Samples:
    from attar.data.texts import text_samples  # whose text encoder is read only here

    return text_samples(images)


def picture(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return samples `[n, *shape]` in [-1, 1] as pixels in [0, 1].

    Raises:
        DataError: samples that are no images.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"samples of the shape {list(shape)} are no pictures; images have [1 or 3, H, W]")
    return ((x + 1) / 2).clamp(0, 1)


def numbers(names: Sequence[str], known: Sequence[str]) -> Tensor:
    """Return the places `[n]` of names among the known ones.

    Raises:
        DataError: a name that is not among them.
    """
    places = {name: place for place, name in reversed(list(enumerate(known)))}
    if unknown := [name for name in names if name not in places]:
        raise DataError(f"no condition is called '{unknown[0]}'{did_you_mean(unknown[0], known)}")
    return torch.tensor([places[name] for name in names], dtype=torch.long)

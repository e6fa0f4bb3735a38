"""Labelled images in memory: the one type that methods, networks and evaluation share."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from attar.data.plans import DataPlan, EpochPlan
from attar.data.whitening import ZCA
from attar.errors import DataError


@dataclass(eq=False)
class Images:
    """Labelled square images with what is needed to bring them into the space that networks see.

    Attributes:
        pixels: `[N, C, H, W]` uint8, or float32 in [0, 1] (after pooling, or when given so).
        labels: `[N]` int64 in 0 … classes - 1. A subset may lack a class; sources refuse that.
        classes: one name a class.
        mean, std: `[C]` float32, of pixels in [0, 1].
        whitening: a `ZCA` that replaces mean and std, or none.
        source: the URI they came from, or a few words.
    """

    example: ClassVar[str] = "a URI, as digits or folder:PATH"  # of what may stand for them

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    whitening: ZCA | None = None
    source: str = "memory"

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[2] != self.pixels.shape[3]:
            raise DataError(f"images must be square, [N, C, H, H]; got {list(self.pixels.shape)}")
        if self.pixels.dtype not in (torch.uint8, torch.float32):
            raise DataError(f"pixels must be uint8 or float32 in [0, 1]; got {self.pixels.dtype}")
        if self.labels.shape != (len(self.pixels),) or self.labels.dtype != torch.int64:
            raise DataError(
                f"labels must be int64 [{len(self.pixels)}]; got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if self.mean.shape != (self.channels,) or self.std.shape != (self.channels,):
            raise DataError(f"mean and std need one value for each of {self.channels} channels")
        self.classes = tuple(self.classes)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """Number of colour channels."""
        return self.pixels.shape[1]

    @property
    def size(self) -> int:
        """Pixels a side; images are square."""
        return self.pixels.shape[3]

    @property
    def num_classes(self) -> int:
        """Number of classes, those without an image included."""
        return len(self.classes)

    @cached_property
    def by_class(self) -> list[Tensor]:
        """Ascending indices of each class's images, int64 on the CPU."""
        labels = self.labels.cpu()
        counts = torch.bincount(labels, minlength=self.num_classes)
        return list(torch.argsort(labels, stable=True).split(counts.tolist()))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over sorted (name, dtype, shape, little-endian bytes) of pixels, labels, constants and whitening."""
        tensors = {"pixels": self.pixels, "labels": self.labels, "mean": self.mean, "std": self.std}
        if self.whitening:
            tensors |= {f"whitening.{name}": value for name, value in self.whitening.state().items()}
        digest = hashlib.sha256()
        for name in sorted(tensors):
            array = tensors[name].detach().cpu().contiguous().numpy()
            digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data.cast("B"))
        return digest.hexdigest()

    def unit(self, indices: Tensor | None = None) -> Tensor:
        """Return float32 pixels in [0, 1]: all of them, or those at `indices` of any shape, `[*indices, C, H, W]`."""
        chosen = self.pixels if indices is None else self.pixels[indices.to(self.pixels.device)]
        return chosen if chosen.dtype == torch.float32 else chosen.float() / 255

    def normalised(self, indices: Tensor | None = None) -> Tensor:
        """Return float32 images in the space that networks see: `(x - mean) / std` of x in [0, 1], or whitened.

        `indices` may have any shape: `[n]` gives `[n, C, H, W]`, `[classes, n]` gives `[classes, n, C, H, W]`.
        """
        if self.whitening:
            return self._whitened if indices is None else self._whitened[indices.to(self.pixels.device)]
        chosen = self.pixels if indices is None else self.pixels[indices.to(self.pixels.device)]
        scale, shift = self._affine
        return torch.addcmul(shift, chosen.float(), scale)

    def normalise(self, x: Tensor) -> Tensor:
        """Bring any pixels in [0, 1], `[n, C, H, W]`, into the space that networks see; differentiable."""
        if self.whitening:
            return self.whitening.transform(x)
        return (x - _per_channel(self.mean).to(x.device)) / _per_channel(self.std).to(x.device)

    def denormalise(self, x: Tensor) -> Tensor:
        """Undo `normalise`. Not clamped: distilled pixels may leave [0, 1], and it is for viewers to clamp them."""
        if self.whitening:
            return self.whitening.inverse(x)
        return x * _per_channel(self.std).to(x.device) + _per_channel(self.mean).to(x.device)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised images and labels at `indices`."""
        return self.normalised(indices), self.labels[indices.to(self.labels.device)]

    def plan(self, batch: int, key: int | str) -> DataPlan:
        """Return the order in which training reads them, `batch` at a time: a pure function of `key` and the step."""
        return EpochPlan(len(self), batch, key)

    def draw(self, n: int, rng: torch.Generator, repeat: bool = False) -> Tensor:
        """Draw `n` images of every class without replacement: CPU indices `[classes, n]`.

        With `repeat`, a class of fewer than `n` images starts over, with each image drawn equally often but for one.

        Raises:
            DataError: a class has fewer than `n` images (with `repeat`: none).
        """
        return torch.stack([self._draw_class(label, n, rng, repeat) for label in range(self.num_classes)])

    def per_class(self, n: int, rng: torch.Generator, repeat: bool = False) -> Tensor:
        """Draw `n` images of every class, normalised: `[classes, n, C, H, W]`."""
        return self.normalised(self.draw(n, rng, repeat))

    def choose_per_class(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` images of every class as one list of indices `[classes · n]`, class-major."""
        return self.draw(n, rng).flatten()

    def subset(self, indices: Tensor) -> Images:
        """Return the images at `indices` `[n]`, in that order, with the same classes, constants and whitening."""
        indices = indices.to(self.pixels.device)
        return dataclasses.replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def split(self, fraction: float, seed: int) -> tuple[Images, Images]:
        """Split into (rest, part) with `fraction` of every class in part, at least one image on either side.

        Raises:
            DataError: `fraction` is not between 0 and 1, or a class has fewer than two images.
        """
        if not 0 < fraction < 1:
            raise DataError(f"the fraction to split off must be between 0 and 1; got {fraction}")
        rng = torch.Generator().manual_seed(seed)
        rest, part = [], []
        for label, members in enumerate(self.by_class):
            if len(members) < 2:
                raise self._too_few(label, 2)
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            order = members[torch.randperm(len(members), generator=rng)]
            part.append(order[:count])
            rest.append(order[count:])
        return self.subset(torch.cat(rest).sort().values), self.subset(torch.cat(part).sort().values)

    def to(self, device: torch.device | str) -> Images:
        """Return the images on `device`; draws stay on the CPU, so that they are the same on every device."""
        if self.pixels.device == torch.device(device):
            return self
        moved = {name: getattr(self, name).to(device) for name in ("pixels", "labels", "mean", "std")}
        return dataclasses.replace(self, **moved, whitening=self.whitening and self.whitening.to(device))

    def summary(self) -> dict[str, Any]:
        """Return what a report says of them, as plain JSON values."""
        counts = [len(members) for members in self.by_class]
        return {
            "source": self.source,
            "images": len(self),
            "classes": list(self.classes),
            "per_class": counts,
            "shape": list(self.pixels.shape[1:]),
            "bytes": self.pixels.numel() * self.pixels.element_size(),
            "storage": str(self.pixels.dtype).removeprefix("torch."),
            "mean": [round(value, 6) for value in self.mean.tolist()],
            "std": [round(value, 6) for value in self.std.tolist()],
            "whitened": self.whitening is not None,
        }

    def _draw_class(self, label: int, n: int, rng: torch.Generator, repeat: bool) -> Tensor:
        members = self.by_class[label]
        if len(members) >= n:
            return members[torch.randperm(len(members), generator=rng)[:n]]
        if not repeat or not len(members):
            raise self._too_few(label, n)
        rounds = -(-n // len(members))
        return torch.cat([members[torch.randperm(len(members), generator=rng)] for _ in range(rounds)])[:n]

    def _too_few(self, label: int, wanted: int) -> DataError:
        have = len(self.by_class[label])
        return DataError(
            f"class '{self.classes[label]}' of {self.source} has {have} image{'s' * (have != 1)}, {wanted} were"
            " asked for; ask for fewer, or add images to that class"
        )

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift that make stored pixels normalised in one pass: stored · scale + shift."""
        full = 255.0 if self.pixels.dtype == torch.uint8 else 1.0
        return _per_channel(1 / (self.std * full)), _per_channel(-self.mean / self.std)

    @cached_property
    def _whitened(self) -> Tensor:
        """All images whitened, once: a [D, D] product for every batch would cost more than the networks do."""
        assert self.whitening is not None
        return self.whitening.transform(self.pixels)


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]

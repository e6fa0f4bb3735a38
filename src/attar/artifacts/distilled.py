"""A distilled set: a few images that stand in for many."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from attar.artifacts.base import Artifact, load
from attar.artifacts.student import Student
from attar.data import ZCA, Images
from attar.errors import AttarError, DamagedFile

if TYPE_CHECKING:
    import datasets
    import numpy as np


class DistilledSet(Artifact):
    """Images with labels, class by class.

    Args:
        images: `[N, C, H, W]` float32 in the space networks see (normalised or whitened); class-major: all of class 0
            first, the same number for every class.
        labels: `[N]` int64, or `[N, classes]` float for soft labels (probabilities).
        like: the real data it stands for: class names, normalisation, whitening, source.
        hints: what it was made for (augmentation, learning rate of the student …), as JSON values.
    """

    kind: ClassVar[str] = "distilled-set"

    def __init__(self, images: Tensor, labels: Tensor, like: Images, hints: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if len(images) != len(labels) or images.dim() != 4:
            raise ValueError(f"images {tuple(images.shape)} and labels {tuple(labels.shape)} do not fit together")
        self.images, self.labels, self.hints = images, labels, dict(hints or {})
        self.classes, self.mean, self.std = like.classes, like.mean, like.std
        self.whitening, self.source = like.whitening, like.source
        self._labellers: list[Student] | None = []  # none: on the disk, not read yet
        self._labelled_by: list[str] = []  # their fingerprints

    @classmethod
    def from_real(cls, data: Images, ipc: int, rng: torch.Generator, **hints: Any) -> Self:
        """Start from `ipc` real images of each class, drawn without replacement.

        Raises:
            DataError: a class has fewer images than that.
        """
        return cls.from_indices(data, data.draw(ipc, rng).reshape(-1), **hints)

    @classmethod
    def from_noise(cls, data: Images, ipc: int, rng: torch.Generator, **hints: Any) -> Self:
        """Start from standard normal noise in normalised space."""
        labels = torch.arange(data.num_classes).repeat_interleave(ipc)
        shape = (len(labels), data.channels, data.size, data.size)
        return cls(torch.randn(shape, generator=rng).to(data.pixels.device), labels.to(data.pixels.device), data, hints)

    @classmethod
    def from_indices(cls, data: Images, indices: Tensor, **hints: Any) -> Self:
        """Take these real images, in class order."""
        order = indices[torch.argsort(data.labels[indices].cpu(), stable=True)]  # indices are drawn on the CPU
        return cls(data.normalised(order).clone(), data.labels[order].clone(), data, hints)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """Colour channels."""
        return self.images.shape[1]

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.images.shape[2]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self) // self.num_classes

    def by_class(self, images: Tensor | None = None) -> Tensor:
        """Return a view `[classes, ipc, C, H, W]` of the images (or of a tensor of the same length)."""
        values = self.images if images is None else images
        return values.view(self.num_classes, self.ipc, *values.shape[1:])

    def hard_labels(self) -> Tensor:
        """Return `[N]` int64: the labels, or the most probable class of soft ones."""
        return self.labels if self.labels.dim() == 1 else self.labels.argmax(1)

    def number(self, name: str, default: float) -> float:
        """Return a hint that is a number above 0, or the default where there is none of that name.

        Raises:
            DamagedFile: it is something else.
        """
        value = self.hints.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise DamagedFile(f"the hint '{name}' of this set is no number above 0 but {value!r}")
        return value

    def pixels(self) -> Tensor:
        """Return the images `[N, C, H, W]` in [0, 1], clipped, for people to look at."""
        images = self.images.detach().cpu()
        if self.whitening is not None:
            return self.whitening.to("cpu").inverse(images).clamp(0, 1)
        shape = (1, -1, 1, 1)
        return (images * self.std.cpu().view(shape) + self.mean.cpu().view(shape)).clamp(0, 1)

    # --------------------------------------------------------------- labellers

    @property
    def labellers(self) -> list[Student]:
        """The networks that label what students are shown of this set; read from its folder when first asked for.

        They lie beside the set and do not count into its fingerprint or bytes.

        Raises:
            DamagedFile: one is missing, damaged, or not the one the set was saved with.
        """
        if self._labellers is None:
            if self.folder is None:
                raise RuntimeError("this set was rebuilt without a folder; use attar.artifacts.load")
            self._labellers = [_labeller(self.folder, n, known) for n, known in enumerate(self._labelled_by)]
        return self._labellers

    @labellers.setter
    def labellers(self, students: Sequence[Student]) -> None:
        self._labellers = list(students)
        # a network that no spec builds again (a foreign module) cannot be stored, and stays in memory
        self._labelled_by = [s.fingerprint for s in students] if all(s.storable for s in students) else []

    def attach(self, folder: Path) -> None:
        """Put the networks that label it into the artifact's folder."""
        for number, student in enumerate(self.labellers if self._labelled_by else []):
            copy.copy(student).save(folder / f"labeller-{number}")

    # ------------------------------------------------------------- other forms

    def dataset(self) -> TensorDataset:
        """Return a torch `Dataset` of (image, label) in the space networks see."""
        return TensorDataset(self.images.detach().cpu(), self.labels.detach().cpu())

    def numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images `[N, C, H, W]` float32 in the space networks see, and labels."""
        return self.images.detach().cpu().numpy(), self.labels.detach().cpu().numpy()

    def to_datasets(self) -> datasets.Dataset:
        """Return a Hugging Face `Dataset` with columns `image` (pictures as people see them), `label` and `pixels`.

        `pixels` holds the exact numbers in the space networks see; pictures are rounded to 8 bits.
        """
        from datasets import Array3D, ClassLabel, Dataset, Features, Image, Sequence, Value

        from attar.artifacts.picture import to_pil

        hard = self.labels.dim() == 1
        label = ClassLabel(names=list(self.classes)) if hard else Sequence(Value("float32"))
        shape = tuple(self.images.shape[1:])
        features = Features({"image": Image(), "label": label, "pixels": Array3D(shape, "float32")})
        images, labels = self.numpy()
        columns = {"image": [to_pil(x) for x in self.pixels()], "label": labels.tolist(), "pixels": list(images)}
        return Dataset.from_dict(columns, features=features)

    # ------------------------------------------------------------------- file

    def tensors(self) -> dict[str, Tensor]:
        """Return images and labels, and the whitening where there is one."""
        whitening = {} if self.whitening is None else self.whitening.state()
        named = {f"whitening.{name}": tensor for name, tensor in whitening.items()}
        return {"images": self.images.detach(), "labels": self.labels.detach(), **named}

    def about(self) -> dict[str, Any]:
        """Return classes, space, source and hints."""
        return {
            "classes": list(self.classes),
            "channels": self.channels,
            "size": self.size,
            "ipc": self.ipc,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "space": "normalised" if self.whitening is None else "whitened",
            "source": self.source,
            "hints": self.hints,
            **({"labellers": self._labelled_by} if self._labelled_by else {}),
        }

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the set that was saved."""
        _check(about, tensors["images"], tensors["labels"])
        state = {name.removeprefix("whitening."): t for name, t in tensors.items() if name.startswith("whitening.")}
        like = Images(
            pixels=torch.zeros(0, about["channels"], about["size"], about["size"], dtype=torch.uint8),
            labels=torch.zeros(0, dtype=torch.int64),
            classes=tuple(about["classes"]),
            mean=torch.tensor(about["mean"]),
            std=torch.tensor(about["std"]),
            source=about["source"],
            whitening=ZCA.from_state(state) if state else None,
        )
        made = cls(tensors["images"], tensors["labels"], like, about["hints"])
        if labelled_by := [str(known) for known in about.get("labellers", ())]:
            made._labellers, made._labelled_by = None, labelled_by
        return made

    def preview(self, path: Path) -> None:
        """Write a sheet with one row a class, where channels make pictures."""
        if self.channels not in (1, 3):
            return
        from attar.artifacts.picture import contact_sheet

        columns = min(self.ipc, 20)
        shown = self.by_class(self.pixels())[:, :columns].flatten(0, 1)
        contact_sheet(shown, columns=columns).save(path)


def _labeller(folder: Path, number: int, expected: str) -> Student:
    path = folder / f"labeller-{number}"
    try:
        found = load(path)
    except DamagedFile:
        raise
    except AttarError as error:
        raise DamagedFile(f"a network that labels this set is missing: {error}") from None
    if not isinstance(found, Student) or found.fingerprint != expected:
        raise DamagedFile(f"{path} is not the network that this set was saved with")
    return found


def _check(about: Mapping[str, Any], images: Tensor, labels: Tensor) -> None:
    """Refuse tensors that are not the images and labels they are said to be.

    Raises:
        ValueError: a type, a shape or a label does not fit.
    """
    channels, size, classes = about["channels"], about["size"], len(about["classes"])
    if images.dtype != torch.float32 or images.shape[1:] != (channels, size, size):
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, not float32 [N, {channels}, {size}, {size}]")
    if len(about["mean"]) != channels or len(about["std"]) != channels:
        raise ValueError(f"mean and std do not have {channels} channels")
    if labels.dim() == 1:
        fit = labels.dtype == torch.int64 and bool(((labels >= 0) & (labels < classes)).all())
    else:
        fit = labels.is_floating_point() and labels.shape[1:] == (classes,)
    if not fit:
        raise ValueError(f"labels {labels.dtype} {list(labels.shape)} are not of {classes} classes")

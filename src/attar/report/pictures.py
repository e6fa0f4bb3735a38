"""The images of an artifact beside real ones of the same class, as PNG data that stands in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.artifacts.picture import to_pil
from attar.errors import DataError

if TYPE_CHECKING:
    import torch

    from attar.data.images import Images
    from attar.data.sources import Splits

PICTURED = ("distilled-set", "projected-set", "targeted-set", "selection")  # kinds of artifacts
CLASSES_SHOWN = 20
MADE_SHOWN = 20  # of a class
REAL_SHOWN = {1: 10, 3: 5}  # of a class, by channels: colour is three times the bytes


@dataclass(frozen=True)
class ClassRow:
    """The pictures of one class as data URIs: what was made or chosen, and real ones."""

    name: str
    made: list[str]
    real: list[str]
    made_total: int


@dataclass(frozen=True)
class Gallery:
    """The rows of the first classes, how many classes there are, and how many images in all."""

    rows: list[ClassRow]
    classes: int
    images: int
    size: int

    @property
    def real(self) -> bool:
        """Whether there are real images to set beside."""
        return any(row.real for row in self.rows)


def gallery(artifact: Mapping[str, Any], folder: Path, data: Images | Splits | None) -> Gallery | None:
    """Gather the pictures of an artifact; None where it has none to show (a student, a selection without its data).

    Raises:
        AttarError: the artifact is damaged, or a selection was not made from `data`.
    """
    real: Images | None = getattr(data, "train", data)  # type: ignore[arg-type]  # the data layer loads torch
    made = _made(folder, real) if artifact.get("kind") in PICTURED else None
    if made is None or made[0].shape[1] not in (1, 3):
        return None
    images, labels, names = made
    rows = []
    for index, name in enumerate(names[:CLASSES_SHOWN]):
        mine = (labels == index).nonzero().flatten()
        shown = [data_uri(image) for image in images[mine[:MADE_SHOWN]]]
        rows.append(ClassRow(name, shown, _real(real, index, name), len(mine)))
    return Gallery(rows, len(names), len(images), int(images.shape[-1]))


def data_uri(image: torch.Tensor) -> str:
    """Return one `[C, H, W]` image in [0, 1], or of bytes, as the data URI of a PNG file."""
    file = io.BytesIO()
    to_pil(image).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _made(folder: Path, real: Images | None) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]] | None:
    """Return images `[N, C, H, W]` (in [0, 1] or bytes), labels `[N]` and class names of an artifact, if any."""
    from attar.artifacts import DistilledSet, Selection, load

    artifact = load(folder)
    if isinstance(artifact, DistilledSet):
        return artifact.pixels(), artifact.hard_labels(), artifact.classes
    if isinstance(artifact, Selection) and real is not None:
        if real.fingerprint != artifact.of:
            raise DataError(f"it was chosen from {artifact.source}, and '{real.source}' is not the same data")
        return real.pixels[artifact.indices], real.labels[artifact.indices], real.classes
    return None


def _real(real: Images | None, index: int, name: str) -> list[str]:
    """Return the first real images of a class, found by its name, else by its place."""
    if real is None:
        return []
    place = list(real.classes).index(name) if name in real.classes else index
    if place >= len(real.by_class):
        return []
    return [data_uri(image) for image in real.pixels[real.by_class[place][: REAL_SHOWN.get(real.channels, 5)]]]

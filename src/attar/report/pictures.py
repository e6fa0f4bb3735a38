"""The images of an artifact beside real ones of the same class, as PNG data that stands in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.artifacts.picture import picture
from attar.files import load_tensors

if TYPE_CHECKING:
    import torch

    from attar.data.images import Images
    from attar.data.sources import Splits

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
    """Gather the pictures of an artifact; None where it has none to show (a student, a selection without its data)."""
    real = _training_images(data)
    made, labels = _made(artifact, folder, real)
    if made is None or labels is None or made.shape[1] not in (1, 3):
        return None
    names = [str(name) for name in artifact.get("classes") or (real.classes if real else ())]
    count = max(len(names), int(labels.max()) + 1)
    names += [f"class {index}" for index in range(len(names), count)]
    rows = []
    for index, name in enumerate(names[:CLASSES_SHOWN]):
        mine = (labels == index).nonzero().flatten()
        shown = [data_uri(image) for image in made[mine[:MADE_SHOWN]]]
        rows.append(ClassRow(name, shown, _real(real, index, name), len(mine)))
    return Gallery(rows, count, len(made), int(made.shape[-1]))


def data_uri(image: torch.Tensor) -> str:
    """Return one `[C, H, W]` image in [0, 1], or of bytes, as the data URI of a PNG file."""
    file = io.BytesIO()
    picture(image).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _made(
    artifact: Mapping[str, Any], folder: Path, real: Images | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the images, `[N, C, H, W]` in [0, 1] or bytes, and the labels `[N]` of an artifact, if it has images."""
    import torch

    file = folder / "tensors.safetensors"
    if not file.is_file():
        return None, None
    tensors = load_tensors(file)
    if "images" in tensors and "labels" in tensors:
        images, labels = tensors["images"].float(), tensors["labels"]
        shape = (1, -1, 1, 1)
        images = images * torch.tensor(artifact["std"]).reshape(shape) + torch.tensor(artifact["mean"]).reshape(shape)
        return images, labels.argmax(1) if labels.ndim == 2 else labels
    if "indices" in tensors and real is not None:
        chosen = tensors["indices"].long()
        return real.pixels[chosen], real.labels[chosen]
    return None, None


def _training_images(data: Images | Splits | None) -> Images | None:
    train: Images | None = getattr(data, "train", data)  # type: ignore[arg-type]  # the data layer loads torch
    return train


def _real(real: Images | None, index: int, name: str) -> list[str]:
    """Return the first real images of a class, found by its name, else by its place."""
    if real is None:
        return []
    place = list(real.classes).index(name) if name in real.classes else index
    if place >= len(real.by_class):
        return []
    return [data_uri(image) for image in real.pixels[real.by_class[place][: REAL_SHOWN.get(real.channels, 5)]]]

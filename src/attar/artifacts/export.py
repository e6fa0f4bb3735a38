"""An artifact in the formats of others: Parquet, a folder of pictures, NumPy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attar import files
from attar.artifacts.base import Artifact
from attar.artifacts.distilled import DistilledSet
from attar.artifacts.picture import to_pil
from attar.artifacts.selection import Selection
from attar.data import Images
from attar.errors import AttarError, RecipeError, did_you_mean


def export(artifact: Artifact, to: str, out: str | Path, data: Images | None = None) -> Path:
    """Write an artifact in another format to `out`, whole or not at all; return `out`.

    Args:
        artifact: a `DistilledSet`, or a `Selection`, of which the chosen real images are written.
        to: `parquet` (one file), `imagefolder` (a folder) or `npz` (one file); see `FORMATS`.
        out: where to; it must not exist.
        data: the real data that a selection was made from.

    Raises:
        RecipeError: the format is unknown.
        AttarError: `out` exists or cannot be written, or the artifact has no such form.
    """
    if to not in FORMATS:
        raise RecipeError(f"unknown format '{to}'{did_you_mean(to, FORMATS)} Known: {', '.join(FORMATS)}")
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise AttarError(f"{out} exists and is not overwritten; choose another --out")
    images = _images(artifact, data)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with files.explained(out):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            FORMATS[to](images, aside)
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink(missing_ok=True)
    return out


def write_parquet(images: DistilledSet, path: Path) -> None:
    """Write one Parquet file with the columns of `DistilledSet.to_datasets`, which `data=parquet:PATH` reads."""
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    images.to_datasets().to_parquet(str(path))


def write_imagefolder(images: DistilledSet, path: Path) -> None:
    """Write 8-bit PNG pictures, one sub-folder a class, which `data=folder:PATH` reads, and `labels.json`.

    A sub-folder has its class's name, behind the class's number where names are no plain, alphabetical file names.
    Pictures are rounded and clipped; `labels.json` holds classes and, for soft labels, the probabilities of each file.
    """
    folders = _folder_names(images.classes)
    labels = images.hard_labels().tolist()
    names = [f"{folders[label]}/{index:05d}.png" for index, label in enumerate(labels)]
    for folder in folders:
        (path / folder).mkdir(parents=True)
    for name, picture in zip(names, images.pixels(), strict=True):
        to_pil(picture).save(path / name)
    told: dict[str, object] = {"classes": dict(zip(folders, images.classes, strict=True))}
    if images.labels.dim() == 2:
        told["soft_labels"] = dict(zip(names, images.labels.tolist(), strict=True))
    files.write_json(path / "labels.json", told)


def write_npz(images: DistilledSet, path: Path) -> None:
    """Write one `.npz` file, which `data=npz:PATH` reads: arrays only, no pickle.

    Arrays: `images` `[N, C, H, W]` float32 in [0, 1], clipped; `labels` `[N]` int64; `normalised` `[N, C, H, W]`
    float32, the exact numbers in the space networks see; `mean`, `std` `[C]`; `classes`, names; `soft_labels`
    `[N, classes]` where labels are soft.
    """
    import numpy as np

    exact, labels = images.numpy()
    arrays: dict[str, Any] = {
        "images": images.pixels().numpy(),
        "labels": images.hard_labels().cpu().numpy(),
        "normalised": exact,
        "mean": images.mean.cpu().numpy(),
        "std": images.std.cpu().numpy(),
        "classes": np.array(images.classes),
        **({"soft_labels": labels} if labels.ndim == 2 else {}),
    }
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


FORMATS: dict[str, Callable[[DistilledSet, Path], None]] = {
    "parquet": write_parquet,
    "imagefolder": write_imagefolder,
    "npz": write_npz,
}


def _images(artifact: Artifact, data: Images | None) -> DistilledSet:
    if isinstance(artifact, DistilledSet):
        return artifact
    if isinstance(artifact, Selection):
        if data is None:
            raise AttarError(
                f"a selection is only indices into '{artifact.source}', which is not at hand: "
                "pass the data it was made from"
            )
        return artifact.distilled(data)
    raise AttarError(f"a {artifact.kind} cannot be exported as images; distilled sets and selections can")


def _folder_names(classes: tuple[str, ...]) -> list[str]:
    """Return a safe sub-folder for each class, whose alphabetical order is the order of the classes."""
    safe = ["".join(c if c.isalnum() or c in " _-" else "_" for c in name).strip() for name in classes]
    if safe == sorted(set(classes)):
        return safe
    digits = len(str(len(classes) - 1))
    return [f"{number:0{digits}d}-{name}".rstrip("-") for number, name in enumerate(safe)]

"""What every artifact does: it is a folder of safetensors and JSON, it has a fingerprint, it loads back."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from attar import files, run_folders
from attar.errors import AttarError, DamagedFile


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over sorted (name, dtype, shape, little-endian bytes) of the tensors.

    >>> a = fingerprint_of({"x": torch.zeros(2), "y": torch.ones(1)})
    >>> a == fingerprint_of({"y": torch.ones(1), "x": torch.zeros(2)}), a == fingerprint_of({"x": torch.zeros(2)})
    (True, False)
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Artifact:
    """Base of everything that comes out of a run.

    A subclass names its `kind`, says its `tensors()` and its `about()` (JSON values, enough to rebuild it) and rebuilds
    itself from the two.
    """

    kind: ClassVar[str]
    format: ClassVar[int] = 1

    def __init__(self) -> None:
        self.parents: dict[str, str] = {}  # name of a stage -> fingerprint of its artifact
        self.folder: Path | None = None  # where it was saved or loaded

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that is numbers."""
        raise NotImplementedError(f"{type(self).__name__} does not say its tensors")

    def about(self) -> dict[str, Any]:
        """Return everything else, as JSON values."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it is about")

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the artifact that `about()` and `tensors()` describe; `about["here"]` is the folder they were in."""
        raise NotImplementedError(f"{cls.__name__} does not say how it is rebuilt")

    def attach(self, folder: Path) -> None:
        """Write into the artifact's folder what is too large for memory, if there is anything."""

    def preview(self, path: Path) -> None:
        """Write a picture, if there is something to see."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over sorted (name, dtype, shape, little-endian bytes) of the tensors."""
        return fingerprint_of(self.tensors())

    @property
    def bytes(self) -> int:
        """Bytes of the numbers, labels included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def save(self, folder: str | Path) -> Path:
        """Write the artifact's folder, whole or not at all, replacing an artifact of an earlier, partial run.

        Raises:
            AttarError: the folder holds something that is not an artifact, or the disk is full.
        """
        folder = Path(folder)
        with files.explained(folder):
            if folder.exists() and not (folder / "artifact.json").exists() and any(folder.iterdir()):
                raise AttarError(f"{folder} exists and is not an artifact; choose another folder")
            aside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}.tmp") for what in ("new", "old"))
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir(parents=True)
                self.write(aside)
                self.preview(aside / "preview.png")
                if folder.exists():
                    folder.replace(old)  # nothing is removed before the new one stands in its place
                aside.replace(folder)
            finally:
                if old.exists() and not folder.exists():
                    old.replace(folder)
                shutil.rmtree(aside, ignore_errors=True)
                if old.is_symlink():
                    old.unlink()  # what it led to is not ours
                shutil.rmtree(old, ignore_errors=True)
        self.folder = folder
        return folder

    def write(self, folder: Path) -> None:
        """Write everything but the preview into a folder that is there."""
        size, checksum = files.save_tensors(folder / "tensors.safetensors", self.tensors())
        stored = {"size": size, "sha256": checksum}
        head = {"kind": self.kind, "format": self.format, "fingerprint": self.fingerprint, "tensors": stored}
        files.write_json(folder / "artifact.json", {**head, **self.about(), "parents": self.parents})
        self.attach(folder)


KINDS = {
    "aggregated-student": "attar.artifacts.aggregated:AggregatedStudent",
    "couplings": "attar.artifacts.couplings:Couplings",
    "autoencoder": "attar.artifacts.autoencoder:Autoencoder",
    "distilled-set": "attar.artifacts.distilled:DistilledSet",
    "dual-encoder": "attar.artifacts.dual:DualStudent",
    "encoder": "attar.artifacts.autoencoder:Encoder",
    "projected-set": "attar.artifacts.projected:ProjectedSet",
    "quantized-student": "attar.artifacts.quantized:QuantizedStudent",
    "reused-head-student": "attar.artifacts.reused:ReusedHeadStudent",
    "soft-labels": "attar.artifacts.soft_labels:SoftLabels",
    "sampler": "attar.artifacts.sampler:Sampler",
    "selection": "attar.artifacts.selection:Selection",
    "student": "attar.artifacts.student:Student",
    "targeted-set": "attar.artifacts.targeted:TargetedSet",
    "trajectories": "attar.artifacts.trajectories:Trajectories",
}


def load(folder: str | Path) -> Any:
    """Load an artifact from its folder, or from the run folder that holds it.

    Raises:
        AttarError: there is no artifact, it is of a newer format, or of an unknown kind.
        DamagedFile: its tensors do not match their checksum.
    """
    folder = Path(folder)
    if not (folder / "artifact.json").exists() and (folder / "artifact" / "artifact.json").exists():
        folder = folder / "artifact"
    head = folder / "artifact.json"
    if not head.is_file():
        if (folder / "recipe.json").is_file() and run_folders.read(folder, "run.json", {}).get("state") != "finished":
            raise AttarError(
                f"{folder} is a run that is not finished, so it holds no artifact yet; the same 'attar run' command "
                "goes on with it"
            )
        raise AttarError(f"{folder} holds no artifact (no artifact.json); name a run folder or an artifact folder")
    about = files.read_json(head)
    kind = about.get("kind") if isinstance(about, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise AttarError(f"{head} describes a {kind!r}; known kinds: {', '.join(KINDS)}. A newer attar may read it")
    cls = _import(KINDS[kind])
    if not isinstance(about.get("format"), int) or about["format"] > cls.format:
        raise AttarError(f"{head} has format {about.get('format')}, newer than {cls.format}: update attar to read it")
    path = folder / "tensors.safetensors"
    stored = about.get("tensors")
    if not path.is_file() or not isinstance(stored, dict) or files.sha256(path) != stored.get("sha256"):
        raise DamagedFile(
            f"{path} is missing or does not match the checksum in artifact.json: it was changed or damaged"
        )
    try:
        artifact = cls.rebuild({**about, "here": str(folder)}, files.load_tensors(path))
        artifact.parents = dict(about.get("parents", {}))
    except DamagedFile:
        raise
    except (ArithmeticError, AttarError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedFile(f"{head} does not describe a {kind}: {error!r}") from None
    artifact.folder = folder
    return artifact


def _import(path: str) -> Any:
    import importlib

    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)

"""Soft labels: what a teacher says of many views of many samples, kept on disk and mapped when read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from attar.artifacts.base import Artifact
from attar.data.plans import Source
from attar.data.soft_labels import SoftLabelSource, SoftLabelStore
from attar.errors import DamagedFile

STORE = "store"  # folder inside the artifact's


class SoftLabels(Artifact):
    """A store of teacher outputs as an artifact; its numbers stay on disk.

    Args:
        store: the opened store.
        source: where the labelled data came from.
    """

    kind: ClassVar[str] = "soft-labels"

    def __init__(self, store: SoftLabelStore | None, source: str, expected: str | None = None) -> None:
        super().__init__()
        self._store, self.source = store, source
        self._expected = expected  # fingerprint of the store, where it is yet to be opened

    def __len__(self) -> int:
        return len(self.store)

    @property
    def store(self) -> SoftLabelStore:
        """The store, opened when it is first asked for.

        Raises:
            DamagedFile: it is damaged, or not the one the artifact was saved with.
        """
        if self._store is None:
            if self.folder is None:
                raise RuntimeError("these soft labels were rebuilt without a folder; use attar.artifacts.load")
            self._store = SoftLabelStore(self.folder / STORE)
            if self._store.fingerprint != self._expected:
                self._store = None
                raise DamagedFile(f"{self.folder / STORE} is not the store that this artifact was saved with")
        return self._store

    def source_of(self, data: Source, *, temperature: float = 1.0, prior: Tensor | None = None) -> SoftLabelSource:
        """Return the labels with their views of `data`, as something a student is trained on; see `SoftLabelSource`."""
        return SoftLabelSource(self.store, data, temperature=temperature, prior=prior)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the store's head and the checksums of its shards."""
        return self.store.fingerprint

    @property
    def bytes(self) -> int:
        """Bytes of the store on disk."""
        return self.store.bytes

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: the numbers are in the store."""
        return {}

    def about(self) -> dict[str, Any]:
        """Return what the labels are of, and the fingerprint of the store."""
        head = self.store.head
        return {
            "store": self.store.fingerprint,
            "rows": len(self.store),
            "classes": head.codec.classes,
            "top_k": head.codec.top_k,
            "teacher": head.teacher,
            "of": head.data,
            "source": self.source,
        }

    def attach(self, folder: Path) -> None:
        """Put the store into the artifact's folder."""
        self.store.link_to(folder / STORE)

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the labels that were saved; the store is opened when it is first read."""
        return cls(None, str(about["source"]), str(about["store"]))

"""Checkpoints: written aside and renamed, checksummed, the last two of each loop kept, a damaged one skipped."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from attar import files
from attar.errors import DamagedFile
from attar.run.state import pack, unpack
from attar.spec import digest

FORMAT = 1
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """What the manifest of one checkpoint says."""

    path: Path  # of the tensors; the manifest lies beside it with the suffix .json
    loop: str
    step: int  # steps done
    finished: bool  # the loop's end state
    sequence: int  # counts the checkpoints of a run
    log_bytes: int  # length of metrics.jsonl when it was written
    tree: Any

    def state(self) -> Any:
        """Load the tensors and return the state as a tree."""
        return unpack(self.tree, files.load_tensors(self.path))


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder, self.recipe = folder, recipe
        files.remove_leftovers(folder)
        self._valid = self._scan()
        self._sequence = max((c.sequence for c in self._valid), default=0)

    def latest(self, loop: str) -> Checkpoint | None:
        """Return the newest undamaged checkpoint of a loop."""
        return max((c for c in self._valid if c.loop == loop), key=lambda c: c.sequence, default=None)

    def newest(self) -> Checkpoint | None:
        """Return the newest undamaged checkpoint of all loops."""
        return max(self._valid, key=lambda c: c.sequence, default=None)

    def save(self, loop: str, step: int, state: Any, *, finished: bool, log_bytes: int) -> None:
        """Write a checkpoint; the manifest comes last and makes it count."""
        self._sequence += 1
        tensors: dict[str, Tensor] = {}
        tree = pack(state, tensors)
        path = self.folder / f"{_safe(loop)}-{step:08d}{'-end' if finished else ''}.safetensors"
        size, checksum = files.save_tensors(path, tensors)
        manifest = {
            "format": FORMAT,
            "recipe": self.recipe,
            "loop": loop,
            "step": step,
            "finished": finished,
            "sequence": self._sequence,
            "log_bytes": log_bytes,
            "size": size,
            "sha256": checksum,
            "tree": tree,
        }
        files.write_json(path.with_suffix(".json"), {**manifest, "digest": digest(manifest)})
        self._valid = [c for c in self._valid if c.path != path]
        self._valid.append(Checkpoint(path, loop, step, finished, self._sequence, log_bytes, tree))
        self._prune(loop)

    def drop(self, loop: str) -> None:
        """Forget a loop's checkpoints."""
        for checkpoint in [c for c in self._valid if c.loop == loop]:
            self._remove(checkpoint)

    def clear(self) -> None:
        """Remove all checkpoints: the run has ended."""
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()
        self._valid = []

    def _prune(self, loop: str) -> None:
        mine = sorted((c for c in self._valid if c.loop == loop), key=lambda c: c.sequence)
        for old in mine[:-KEEP]:
            self._remove(old)

    def _remove(self, checkpoint: Checkpoint) -> None:
        checkpoint.path.with_suffix(".json").unlink(missing_ok=True)  # first what makes it count
        checkpoint.path.unlink(missing_ok=True)
        self._valid.remove(checkpoint)

    def _scan(self) -> list[Checkpoint]:
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(self._read(path))
            except (DamagedFile, KeyError, TypeError, OSError) as error:
                warnings.warn(f"checkpoint {path.name} is damaged and is skipped: {error}", stacklevel=4)
        return found

    def _read(self, path: Path) -> Checkpoint:
        manifest = files.read_json(path)
        claimed = manifest.pop("digest")
        if digest(manifest) != claimed:
            raise DamagedFile("its manifest does not match its own digest")
        if manifest["format"] > FORMAT:
            raise DamagedFile(f"it has format {manifest['format']}, newer than {FORMAT}: update attar")
        if manifest["recipe"] != self.recipe:
            raise DamagedFile("it belongs to another recipe")
        tensors = path.with_suffix(".safetensors")
        if not tensors.exists() or tensors.stat().st_size != manifest["size"]:
            raise DamagedFile("its tensors are missing or truncated")
        if files.sha256(tensors) != manifest["sha256"]:
            raise DamagedFile("its tensors do not match their checksum")
        names = ("loop", "step", "finished", "sequence", "log_bytes", "tree")
        return Checkpoint(tensors, *(manifest[name] for name in names))


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)

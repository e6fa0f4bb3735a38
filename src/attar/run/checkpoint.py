"""Checkpoints: written aside and renamed, checksummed, the last two of each loop kept, a damaged one skipped."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from attar import files
from attar.errors import DamagedFile, RecipeError
from attar.progress import tell
from attar.run.state import pack, unpack
from attar.spec import digest

FORMAT = 2
KEEP = 2
SECONDS = 30.0  # between two checkpoints of a loop


def seconds_between() -> float:
    """Return the seconds between two checkpoints of a loop: what ATTAR_CHECKPOINT_SECONDS says, else 30."""
    told = os.environ.get("ATTAR_CHECKPOINT_SECONDS", str(SECONDS))
    try:
        return float(told)
    except ValueError:
        raise RecipeError(f"ATTAR_CHECKPOINT_SECONDS={told!r} is not a number of seconds") from None


class Place(NamedTuple):
    """Where in a run a checkpoint was written; a later place is greater, on every start alike."""

    loop: int  # how many loops the run had entered
    step: int  # of the loop, done
    finished: bool  # the loop's end state


@dataclass(frozen=True)
class Checkpoint:
    """What the manifest of one checkpoint says."""

    path: Path  # of the tensors; the manifest lies beside it with the suffix .json
    loop: str
    place: Place
    log_bytes: int  # length of metrics.jsonl when it was written
    tree: Any

    def state(self) -> Any:
        """Load the tensors and return the state as a tree."""
        return unpack(self.tree, files.load_tensors(self.path))


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder, self.recipe = folder, recipe
        self._valid = self._scan()

    def latest(self, loop: str) -> Checkpoint | None:
        """Return the newest undamaged checkpoint of a loop."""
        return max((c for c in self._valid if c.loop == loop), key=lambda c: c.place, default=None)

    def furthest(self) -> Checkpoint | None:
        """Return the undamaged checkpoint that lies furthest in the run.

        It need not be the newest file: a loop that is repeated (it was left by `break`, or its end state is damaged)
        writes its checkpoints anew while those of later loops still count.
        """
        return max(self._valid, key=lambda c: c.place, default=None)

    def save(self, loop: str, place: Place, state: Any, *, log_bytes: int) -> None:
        """Write a checkpoint; the manifest comes last and makes it count."""
        tensors: dict[str, Tensor] = {}
        tree = pack(state, tensors)
        path = self.folder / f"{_safe(loop)}-{place.step:08d}{'-end' if place.finished else ''}.safetensors"
        # an older manifest of this place would count again with these tensors, and tell the length of an older log
        path.with_suffix(".json").unlink(missing_ok=True)
        size, checksum = files.save_tensors(path, tensors)
        manifest = {
            "format": FORMAT,
            "recipe": self.recipe,
            "loop": loop,
            "place": list(place),
            "log_bytes": log_bytes,
            "size": size,
            "sha256": checksum,
            "tree": tree,
        }
        files.write_json(path.with_suffix(".json"), {**manifest, "digest": digest(manifest)})
        self._valid = [c for c in self._valid if c.path != path]
        self._valid.append(Checkpoint(path, loop, place, log_bytes, tree))
        self._prune(loop)

    def clear(self) -> None:
        """Remove all checkpoints: the run has ended."""
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()
        self._valid = []

    def _prune(self, loop: str) -> None:
        mine = sorted((c for c in self._valid if c.loop == loop), key=lambda c: c.place)
        for old in mine[:-KEEP]:
            self._remove(old)
        for path in self.folder.glob("*.safetensors"):  # of a writer killed before the manifest made it count
            if not path.with_suffix(".json").exists():
                path.unlink()

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
                tell(f"checkpoint {path} is damaged and is skipped, the run goes on from the one before: {error}")
        return found

    def _read(self, path: Path) -> Checkpoint:
        manifest = files.read_json(path)
        if not isinstance(manifest, dict):
            raise DamagedFile("its manifest is no JSON object")
        claimed = manifest.pop("digest")
        if digest(manifest) != claimed:
            raise DamagedFile("its manifest does not match its own digest")
        if manifest["format"] != FORMAT:
            raise DamagedFile(f"it has format {manifest['format']}, and this attar writes format {FORMAT}")
        if manifest["recipe"] != self.recipe:
            raise DamagedFile("it belongs to another recipe")
        tensors = path.with_suffix(".safetensors")
        if not tensors.exists() or tensors.stat().st_size != manifest["size"]:
            raise DamagedFile("its tensors are missing or truncated")
        if files.sha256(tensors) != manifest["sha256"]:
            raise DamagedFile("its tensors do not match their checksum")
        place = Place(*manifest["place"])
        return Checkpoint(tensors, manifest["loop"], place, manifest["log_bytes"], manifest["tree"])


def _safe(name: str) -> str:
    """Return a loop's name as part of a file's name; names that differ never become alike."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

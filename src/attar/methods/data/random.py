"""The baseline that every method must beat."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from attar.artifacts import Selection
from attar.data import Images
from attar.run import Run
from attar.spec import method


@method
class RandomSelection:
    """Choose images uniformly without replacement, the same number from every class."""

    version: ClassVar = 1
    presets: ClassVar[dict[str, dict[str, object]]] = {"small": {}}

    ipc: int = Field(10, ge=1)  # images per class

    def __call__(self, run: Run, *, data: Images) -> Selection:
        return Selection(data.draw(self.ipc, run.rng("choose")).flatten(), data.fingerprint, data.source)

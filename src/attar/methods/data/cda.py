"""CDA: SRe2L whose crops start from whole pictures and shrink."""

from __future__ import annotations

from typing import Any, ClassVar

from attar.methods.data.recovery.crops import Crops
from attar.methods.data.sre2l import PIXELS, SMALL, SqueezeRecover
from attar.spec import method

SHRINKING: dict[str, Any] = {"curriculum": "cosine"}


@method
class CurriculumSynthesis(SqueezeRecover):
    """Recover outlines first and details later: the smallest crop shrinks over the steps (arXiv 2311.18838).

    Yin & Shen 2024. Everything else is `SqueezeRecover`. Below about 28 pixels whole pictures (`crops=null`) are
    better than any crop, a curriculum's too.
    """

    version: ClassVar = 1
    presets: ClassVar = {
        "small": {**SMALL, "crops": {**SHRINKING, "ratio": [1.0, 1.0]}},
        "tiny-imagenet": {"steps": 4000, "optimizer": {**PIXELS, "lr": 0.4}, "alpha": 0.05, "jitter": 4},
        "imagenet-21k": {"steps": 2000, "optimizer": {**PIXELS, "lr": 0.05}, "alpha": 0.25},
    }

    crops: Crops | None = Crops(curriculum="cosine")  # over all steps, as the paper has it

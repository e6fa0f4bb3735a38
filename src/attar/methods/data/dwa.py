"""DWA: SRe2L from real images, against a teacher moved away from them, with the variances weighted up."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from attar.methods.data.recovery.recover import Adjustment
from attar.methods.data.sre2l import CIFAR, PIXELS, SMALL, SqueezeRecover
from attar.spec import method

DIRECTED: dict[str, Any] = {"adjustment": {"steps": 12}, "variance_weight": 11.0}


@method
class DirectedAdjustment(SqueezeRecover):
    """Make batches differ: each starts from real images, and from a teacher that fits these less (arXiv 2409.17612).

    Du et al. 2024. Before a batch is recovered, the teacher's weights climb the loss of the images it starts from, and
    stay there; variances weigh more than means, so that images spread. Labels come from the teacher as it was trained.
    Everything else is `SqueezeRecover`; `init=noise`, `adjustment=null` and `variance_weight=1` take the parts away.
    """

    version: ClassVar = 2
    protocol: ClassVar = "dwa"
    presets: ClassVar = {
        "small": {**SMALL, **DIRECTED},
        "cifar": {**CIFAR, **DIRECTED},
        "tiny-imagenet": {
            "steps": 2000,
            "optimizer": {**PIXELS, "lr": 0.1},
            "alpha": 0.01,
            "jitter": 4,
            "classes": 200,
            **DIRECTED,
        },
    }

    # the paper's for ImageNet-1K
    steps: int = Field(2000, ge=1)
    init: Literal["noise", "real"] = "real"
    variance_weight: float = Field(2.0, ge=0)
    adjustment: Adjustment | None = Adjustment(steps=15)

"""How small sets are judged: what students are shown, who labels it, and how they are trained, paper by paper."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from attar.data.policies import Policy
from attar.data.soft_labels import Views
from attar.nets import ConvNet, Net
from attar.spec import spec
from attar.train.training import Training

Labels = Literal["own", "hard", "static", "soft", "projector", "targets"]


@spec
class Protocol:
    """How a set is judged. Defaults are the field's protocol (arXiv 2006.05929); accuracy is read at the last step.

    Every arm is shown and labelled alike. `labels` says by whom:

    - own: by the set itself, hard or soft as it has them; real images have their classes.
    - hard: by class.
    - static: by teachers, once for every image as it is, mixed as logits where images are mixed (arXiv 2408.06927).
    - soft: by teachers, for the very view that a student is shown (arXiv 2306.13092).
    - projector: by the label projector that came with the set, for the very view (arXiv 2408.08201).
    - targets: by the set's learned targets, of which the squared error is taken; real images have their class as a
      centred one-hot vector (arXiv 2206.00719).
    """

    net: Net = ConvNet(depth=3, width=128)
    networks: int = Field(5, ge=1)  # fresh ones; the field trains 5 to 20
    training: Training = Training()
    labels: Labels = "own"
    views: Views | None = None  # crops, flips and mixing, one view of every image a pass; none: images as they are
    policy: Policy = "none"  # of pictures rounded to 8 bits, one draw a batch (arXiv 2207.09639); without views
    tiles: bool = False  # in sets of mosaics a crop stays inside one tile (arXiv 2502.06434)
    temperature: float = Field(20.0, gt=0)  # of static and soft labels, and of students that learn them
    hard_weight: float = Field(1.0, ge=0)  # β, of the classes beside what a projector says


_HALF: dict[str, Any] = {"kind": "drop", "at": [0.5], "by": 0.1}
_SMALL_NET: dict[str, Any] = {"depth": 2, "width": 32}
_SMALL_BN: dict[str, Any] = {**_SMALL_NET, "norm": "batch"}
_LONG: dict[str, Any] = {"epochs": 999, "schedule": _HALF}
_RESNET: dict[str, Any] = {"kind": "resnet18", "norm": "batch"}
_SHIFTED: dict[str, Any] = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "augment": "crop"}  # by 4 px at 32, and flipped
_MIXED: dict[str, Any] = {**_SHIFTED, "mix": "mixup", "mix_alpha": 0.8}


def _decoupled(passes: int, batch: int = 128, **fields: Any) -> dict[str, Any]:
    """Return what the line of SRe2L shares: AdamW without decay of norms and biases, along a cosine to zero."""
    optimizer = {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.01, "decays": "weights"}
    training = {"epochs": passes - 1, "batch": batch, "optimizer": optimizer, "schedule": "cosine"}
    return {"training": training, "net": _RESNET, **fields}


def _small(passes: int = 400, lr: float = 0.005, **fields: Any) -> dict[str, Any]:
    """Return the same at the size of two cores, the rates and views of our claims."""
    training = {"epochs": passes - 1, "batch": 100, "optimizer": {"kind": "adamw", "lr": lr}, "schedule": "cosine"}
    return {"training": training, "net": _SMALL_BN, **fields}


_SOFT: dict[str, Any] = {"labels": "soft", "views": {"mix": "cutmix"}, "temperature": 20.0}
_DWA = _decoupled(300, **_SOFT)  # ImageNet-1K; in the benchmark of arXiv 2502.06434 so, too
_CIFAR = _decoupled(400, labels="soft", views=_MIXED, temperature=30.0)
_SMALL_SRE2L = _small(labels="soft", views={"scale": [0.5, 1.0], "mix": "cutmix"}, temperature=20.0)
_FREPO: dict[str, Any] = {
    "training": {
        "batch": 500,
        "optimizer": {"kind": "adam", "lr": 3e-4},
        "schedule": {"kind": "cosine", "warmup": 500, "final": 0.01},
        "augment": "color_crop_cutout_flip_rotate",
    },
    "net": {"kind": "convnet-doubling", "norm": "none"},
    "labels": "targets",
}
_WARM: dict[str, Any] = {"kind": "cosine", "warmup": 785}  # five passes over 50 images of each of 200 classes

# optimizer steps of a student by the number of images, the first entry that is not smaller; the last for all above
_FREPO_STEPS = {10: 1000, 100: 2000, 500: 5000, 1000: 10_000, 2000: 40_000}
STEPS: dict[str, dict[int, int]] = {"frepo": _FREPO_STEPS, "fashion-mnist-frepo": _FREPO_STEPS}

PROTOCOLS: dict[str, dict[str, Any]] = {
    "dc": {"training": {"epochs": 300}},
    "dsa": {"training": {"epochs": 1000, "augment": "dsa"}},  # DSA and DM
    "mtt": {"training": {"epochs": 1000, "augment": "dsa"}},  # and the student takes the learned step size
    "datm": {"training": {"epochs": 1000, "augment": "dsa", "batch": 128}},
    "datadam": {"training": {"epochs": 1800, "augment": "dsa", "batch": 64}},
    "fyi": {"training": {"epochs": 1000, "augment": "dsa-always-flip"}},
    "small-fyi": {"training": {"epochs": 300, "augment": "flip"}, "net": _SMALL_NET},
    # DC-BENCH (arXiv 2207.09639) and DD-Ranking (arXiv 2505.13300) make exactly 300 and 1000 passes
    "dcbench": {"training": {"epochs": 299, "schedule": _HALF}},
    "dcbench-dsa": {"training": {**_LONG, "augment": "dsa"}},
    "dcbench-autoaug": {"training": _LONG, "policy": "autoaug"},
    "dcbench-randaug": {"training": _LONG, "policy": "randaug"},
    "dcbench-cifar": {"training": _LONG, "policy": "cifar"},
    "dcbench-imagenet": {"training": _LONG, "policy": "imagenet"},
    "ddranking": {"training": {**_LONG, "augment": "dsa", "batch": 128}},
    "small": {"training": {"epochs": 300}, "net": _SMALL_NET},
    # teachers that label every view (arXiv 2306.13092, 2409.17612)
    "sre2l": _decoupled(300, 1024, **_SOFT),
    "cifar-sre2l": _CIFAR,
    "small-sre2l": _SMALL_SRE2L,
    "dwa": _DWA,
    "cifar-dwa": _CIFAR,
    "tiny-imagenet-dwa": {
        **_DWA,
        "training": {
            "epochs": 199,
            "batch": 64,
            "optimizer": {"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4},
            "schedule": _WARM,
        },
    },
    "small-dwa": _SMALL_SRE2L,
    "infer": _decoupled(400, 64, labels="static", views=_MIXED, temperature=30.0),  # arXiv 2408.06927
    "infer-dynamic": _decoupled(80, 64, labels="soft", views=_MIXED, temperature=30.0),
    "small-infer": _small(
        labels="static", views={"scale": [0.7, 1.0], "mix": "mixup", "mix_alpha": 0.8}, temperature=30.0
    ),
    "hello": _decoupled(300, labels="projector", views={}),  # arXiv 2408.08201; β and the views are unconfirmed
    "small-hello": _small(labels="projector", views={"scale": [0.5, 1.0]}),
    # ridge regression's learned labels, for students without norm (KIP and FRePo, arXiv 2206.00719); steps: see STEPS
    "frepo": _FREPO,
    "fashion-mnist-frepo": {
        **_FREPO,
        "training": {**_FREPO["training"], "augment": "color_crop_cutout_rotate"},  # shoes all point one way
    },
    "small-frepo": {
        "training": {
            "steps": 1000,
            "optimizer": {"kind": "adam", "lr": 1e-3},
            "schedule": {"kind": "cosine", "warmup": 100, "final": 0.01},
        },
        "net": {**_SMALL_NET, "norm": "none"},
        "labels": "targets",
    },
    # the method of arXiv 2502.06434, and its benchmark of methods that compress by images or by labels
    "pca": _decoupled(300, labels="hard", views={}, tiles=True),
    "small-pca": _small(300, 0.003, labels="hard", views={"scale": [0.6, 1.0], "ratio": [1.0, 1.0]}, tiles=True),
    "pca-soft": _DWA,
    "pca-hard": _decoupled(300, labels="hard", views={}),
    "pca-pruning": {
        **_decoupled(300, labels="hard", views={}),
        "training": {
            "epochs": 299,
            "batch": 128,
            "optimizer": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            "schedule": "cosine",
        },
    },
}

"""Every method at a size of milliseconds a step, for the tests that run all of them: fields only.

A method that the ledger has and this table lacks fails those tests with a message that names this file.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from attar import ledger

NET = {"net.depth": 1, "net.width": 8}
FEATURES = {"ipc": 2, "epochs": 1, **NET}
GRADIENTS = {"ipc": 2, "steps": 3, "updates": 4, "epochs": 1, "real_batch": 4, **NET}
TRAJECTORIES = {
    "ipc": 1,
    "steps": 8,
    "student_steps": 3,
    "expert_epochs": 1,
    "window": {"first": 0, "stop": 2},
    **NET,
    "experts.count": 2,
    "experts.epochs": 3,
    "experts.batch": 18,
}
RECOVERY = {"ipc": 2, "steps": 6, "jitter": 2, "classes": 2, "squeeze.steps": 4, "squeeze.batch": 9, **NET}

REGRESSION = {"steps": 12, "real_batch": 9, **NET, "pool.size": 2, "pool.max_age": 3}

OBJECTIVE = {
    "teacher": "convnet-bn",
    "teaching.epochs": 1,
    "teaching.batch": 18,
    **{name.replace("net.", "student."): value for name, value in NET.items()},
    "train.steps": 8,
    "train.batch": 12,
    "train.schedule.warmup": 2,
}

UNTAUGHT = {key: value for key, value in OBJECTIVE.items() if not key.startswith("teach")}

MASKED = {
    "net.patch": 2,
    "net.width": 8,
    "net.depth": 3,
    "net.heads": 2,
    "decoder.width": 8,
    "decoder.depth": 1,
    "decoder.heads": 2,
    "train.steps": 6,
    "train.batch": 12,
}

TEACHING = {f"teaching.{name}": value for name, value in {**MASKED, "net.width": 12, "decoder.width": 12}.items()}

DUAL = {
    "net.image": {"patch": 4, "width": 8, "depth": 2, "heads": 2, "head_width": 4},
    "net.text": {"width": 8, "depth": 2, "heads": 2, "head_width": 4, "context": 8},
    "net.dimensions": 6,
    "train.steps": 8,
    "train.batch": 12,
    "train.views.scale": [1.0, 1.0],
    "train.warmup": 2,
}

DENOISER = {"net": {"width": 16, "blocks": 1}, "train": {"steps": 6, "batch": 8}}

SAMPLER = {"teaching": DENOISER, "train": DENOISER["train"]}

TINY: dict[str, dict[str, Any]] = {
    "random": {"ipc": 2},
    "herding": FEATURES,
    "kcenter": FEATURES,
    "kmeans": FEATURES,
    "dc": GRADIENTS,
    "dsa": GRADIENTS,
    "dm": {"ipc": 2, "steps": 12, "real_batch": 4, **NET},
    "fyi": {f"base.{name}": value for name, value in {"ipc": 2, "steps": 12, "real_batch": 4, **NET}.items()},
    "datadam": {"ipc": 2, "steps": 12, "real_batch": 4, **NET, "net.depth": 2, "optimizer.lr": 1.0},
    "dcc": {**GRADIENTS, "warmup_networks": 1},
    "mtt": TRAJECTORIES,
    "tesla": TRAJECTORIES,
    "ftd": TRAJECTORIES,
    "ast": TRAJECTORIES,
    "sre2l": {**RECOVERY, "crops.smallest": 0.3},
    "cda": RECOVERY,
    "dwa": {**RECOVERY, "adjustment.steps": 2},
    "infer": {
        **{key: value for key, value in RECOVERY.items() if key not in {"classes", *NET}},
        "ipc": 4,
        "nets": [{"kind": "convnet", "depth": 1, "width": width, "norm": "batch"} for width in (4, 6)],
    },
    "hello": {
        **{key: RECOVERY[key] for key in ("steps", "squeeze.steps", "squeeze.batch", *NET)},
        "ipc": 1,
        "weak": 2,
        "pretraining.steps": 4,
        "pretraining.batch": 9,
        "stand_in": {"kind": "convnet", "depth": 1, "width": 8},
    },
    "pca": {"ipc": 2, "scorers": 2, "scoring.steps": 5, "scoring.batch": 9, **NET},
    "kip": {"ipc": 1, "steps": 12, "real_batch": 9, "solve_labels": True},
    "frepo": {"ipc": 1, "optimizer.lr": 0.01, **REGRESSION},
    "krr-st": {
        "images": 6,
        "augment": "crop-and-flip",
        **REGRESSION,
        **{f"teaching.{name}": value for name, value in NET.items()},
        "teaching.dimensions": 4,
        "teaching.projector": 8,
        "teaching.training.steps": 4,
        "teaching.training.batch": 9,
    },
    "student": {**OBJECTIVE, "objective": "kd:0.9+attention"},
    "mae": MASKED,
    "clip": DUAL,
    "tinyclip": {
        **{f"teaching.{name}": value for name, value in DUAL.items()},
        **{name: value for name, value in DUAL.items() if name.startswith("train")},
        "inherit": "automatic",
        "keep": [0.7, 0.5],
        "gates": {"steps": 5, "ramp": 2, "open": 0.5, "optimizer": {"kind": "sgd", "lr": 2.0}},
    },
    "fine-tuning": {
        **{f"pretraining.{name}": value for name, value in MASKED.items()},
        "train.steps": 6,
        "train.batch": 12,
    },
    "dmae": {**MASKED, **TEACHING},
    "dmjd": {**MASKED, "block": 1},
    "hybrid-distill": {
        **{name: value for name, value in MASKED.items() if not name.startswith("decoder.")},
        **TEACHING,
        "relation_heads": 2,
        **{f"contrasting.{name}": value for name, value in MASKED.items() if name.startswith("net.")},
        "contrasting.dimensions": 4,
        "contrasting.projector": 8,
        "contrasting.training.steps": 4,
        "contrasting.training.batch": 9,
    },
    "g2sd": {
        **TEACHING,
        **{f"generic.{name}": value for name, value in MASKED.items()},
        **{f"{part}.train.{name}": 6 for part in ("specific", "tuning") for name in ("steps", "batch")},
    },
    "kd": OBJECTIVE,
    "dkd": {**OBJECTIVE, "train.augment": "crop-and-flip"},
    "attention": OBJECTIVE,
    "nkd": OBJECTIVE,
    "dist": OBJECTIVE,
    "fitnet": OBJECTIVE,
    "sp": OBJECTIVE,
    "rkd": OBJECTIVE,
    "pkt": OBJECTIVE,
    "cc": OBJECTIVE,
    "nst": OBJECTIVE,
    "ickd": OBJECTIVE,
    "cka": OBJECTIVE,
    "reviewkd": {**OBJECTIVE, "widest": 16},
    "ab": OBJECTIVE,
    "ft": OBJECTIVE,
    "fsp": {**OBJECTIVE, "student.depth": 2, "student.width": 128, "train.steps": 4},
    "simkd": OBJECTIVE,
    "label-smoothing": UNTAUGHT,
    "tf-kd": UNTAUGHT,
    "ban": {**UNTAUGHT, "generations": 1},
    "ps-kd": UNTAUGHT,
    "cs-kd": {**UNTAUGHT, "train.augment": "crop-and-flip"},
    "byot": {**UNTAUGHT, "student.depth": 2},
    "crd": {**OBJECTIVE, "dimensions": 4, "negatives": 20},
    "vid": {**OBJECTIVE, "train.augment": "crop-and-flip"},
    "ofd": OBJECTIVE,
    "meal-v2": {
        **OBJECTIVE,
        "teacher": "convnet-bn,mlp",
        "teaching.lr": 0.01,
        "pretraining.epochs": 1,
        "pretraining.batch": 18,
    },
    "nd": OBJECTIVE,
    "bd-kd": {**UNTAUGHT, "peers": [{"kind": "convnet", "depth": 1, "width": 6, "norm": "batch"}] * 2},
    "kernel-self-distillation": {**UNTAUGHT, "generations": 2, "train.steps": 4},
    "ofa-kd": {**OBJECTIVE, "student.depth": 2},
    "scalekd": {**OBJECTIVE, "student.depth": 2, "heads": [2, 2]},
    "talking-models": {**OBJECTIVE, "hidden": 8, "message": 4},
    "ssld": {**OBJECTIVE, "finetune_steps": 3},
    "sla": {key: value for key, value in OBJECTIVE.items() if not key.startswith("teach")},
    "random-teachers": {
        **NET,
        "net.norm": "batch",
        "projection.hidden": [8],
        "projection.bottleneck": 4,
        "projection.outputs": 16,
        "train.steps": 6,
        "train.batch": 9,
    },
    "deit-lt": {
        **{key: value for key, value in OBJECTIVE.items() if not key.startswith(("teach", "student."))},
        "student": {"patch": 4, "width": 8, "depth": 1, "heads": 2},
        "flat": {"net": {"kind": "convnet", "depth": 1, "width": 4}, "train": {"steps": 4, "batch": 9}},
        "reweight_from": 0.5,
        "unmix_from": 0.75,
    },
    "ferkd": {
        **{key: value for key, value in OBJECTIVE.items() if key != "train.schedule.warmup"},
        "passes": 3,
        "crops": 2,
    },
    "mtard": {
        **{key: value for key, value in OBJECTIVE.items() if key != "teacher"},
        "student.kind": "convnet",
        "student.norm": "batch",
        "attack.steps": 2,
        **{f"clean_{name}": value for name, value in NET.items()},
        **{f"robust.{name}": value for name, value in NET.items()},
        "robust.train.steps": 3,
        "robust.train.batch": 9,
        "robust.attack.steps": 2,
    },
    "diswot": {
        "teacher": "staged-resnet",
        "space": {"depths": [1, 2], "widths": [[4, 6], [64]]},
        "evaluations": 5,
        "population": 3,
        "tournament": 2,
        "draws": 1,
        "batch": 9,
        **{f"distillation.{name}": OBJECTIVE[name] for name in OBJECTIVE if name.startswith(("teaching", "train"))},
    },
    "quantized-distillation": {
        **OBJECTIVE,
        "train.schedule.warmup": 0,
        "bits": 2,
        "learn": "points",
        "point_train.steps": 4,
    },
    "diffusion": DENOISER,
    "consistency": {**SAMPLER, "pairs": {"intervals": 6}, "guidance": {"scale": 2.0}},
    "ict": {**SAMPLER, "pairs": {"intervals": 12}},
    "lcm": {**SAMPLER, "pairs": {"intervals": 6}},
    "scott": {**SAMPLER, "adversary": {"hidden": 4}},
    "rg-lcd": {
        **SAMPLER,
        "pairs": {"intervals": 6},
        "proxy": {"hidden": 8, "dimensions": 4},
        "judging": {"net": {"kind": "convnet", "depth": 1, "width": 4}, "training": {"steps": 3, "batch": 9}},
    },
    "mlcm": {
        **SAMPLER,
        "pairs": {"intervals": 8, "skip": 2, "segments": 4},
        "rollout": 2,
        "across": 0.5,
        "across_steps": 2,
        "across_substeps": 2,
    },
    "hyper-sd": {
        **SAMPLER,
        "train": {"steps": 2, "batch": 8},
        "pairs": {"intervals": 8},
        "segments": [2, 1],
        "closeness": [1.0, 0.1],
        "fooling": [0.0, 1.0],
        "adversary": {"hidden": 4},
        "feedback_steps": 2,
        "one_step_steps": 2,
        "coupling": {"count": 16, "steps": 2},
        "judging": {"net": {"kind": "convnet", "depth": 1, "width": 4}, "training": {"steps": 3, "batch": 9}},
    },
    "control": {
        "teaching": {"net": {"width": 8, "depth": 2, "heads": 2}, "train": DENOISER["train"]},
        "copies": {"blocks": 1},
        "train": DENOISER["train"],
    },
    "progressive": {**SAMPLER, "teacher_steps": 4},
    "scm": {**SAMPLER, "warmup": 4},
    "sana-sprint": {
        "teaching": {**DENOISER, "net": {**DENOISER["net"], "time_scale": 10.0}},
        "train": DENOISER["train"],
        "warmup": 4,
        "steadying": {"train": {"steps": 3, "batch": 8}},
        "adversary": {"hidden": 4},
    },
    "rcm": {**SAMPLER, "warmup": 2, "guidance": {"scale": 2.0}, "fake": {"updates": 2}},
    "meanflow": SAMPLER,
    "rectified-flow": {
        **SAMPLER,
        "coupling": {"count": 20, "steps": 2},
        "rounds": 2,
        "distil_steps": 3,
        "guidance": {"highest": 3.0},
    },
    "instaflow": {
        **SAMPLER,
        "coupling": {"count": 20, "steps": 3},
        "own_coupling": {"count": 20, "steps": 2},
        "distil_steps": 3,
        "perceptual_steps": 2,
        "perceptual": {"net": {"kind": "convnet", "depth": 1, "width": 4}, "training": {"steps": 3, "batch": 9}},
    },
    "boot": {**SAMPLER, "guidance": {"scale": 2.0}, "substeps": 2},
    "dmd": {
        **SAMPLER,
        "coupling": {"count": 20, "steps": 2},
        "score": {"updates": 2},
        "adversary": {"weight": 0.1, "hidden": 4},
    },
    "slimflow": {
        "teaching": DENOISER,
        "net": {"kind": "residual-mlp", "width": 8, "blocks": 1},
        "train": {**DENOISER["train"], "schedule": {"kind": "constant"}},
        "coupling": {"count": 20, "steps": 2},
        "distil_steps": 3,
        "compared": "both",
        "perceptual": {"net": {"kind": "convnet", "depth": 1, "width": 4}, "training": {"steps": 3, "batch": 9}},
    },
    "guided-distillation": {**SAMPLER, "guidance_steps": 4, "teacher_steps": 4, "steps": 2},
    "lora-distillation": {**SAMPLER, "lora": {"rank": 2, "layers": "all"}, "steps": 4},
    "agd": {**SAMPLER, "adapters": {"hidden": 4}, "trajectories": {"count": 10, "steps": 4}, "steps": 4},
    "hipa": {
        **SAMPLER,
        "lora": {"rank": 2, "layers": "all"},
        "coupling": {"count": 20, "steps": 2},
        "features": {"kind": "convnet", "depth": 1, "width": 8},
        "judging": {"steps": 4, "batch": 9},
    },
    "datm": {**TRAJECTORIES, "window": {"first": 0, "grow_from": 1, "stop": 2, "grow_over": 3}},
}


def methods() -> list[str]:
    """Return the ids of all methods whose code exists."""
    return [row.id for row in ledger.rows() if ledger.exists(row.code)]


def settings(id: str) -> dict[str, Any]:
    """Return the tiny settings of a method."""
    if id not in TINY:
        raise AssertionError(f"'{id}' is in the ledger but has no tiny settings; add fields for it to tests/tiny.py")
    return {"threads": 1, "device": "cpu", **TINY[id]}


def one_worker(home: Path) -> None:
    """Let runs whose caches lie in `home` train networks one after another: starting processes takes seconds."""
    home.mkdir(parents=True, exist_ok=True)
    shipped = resources.files("attar.run").joinpath("plans.toml").read_text()
    (home / "plans.toml").write_text(re.sub(r"(?m)^workers = .*", "workers = 1", shipped))


def write_data(path: Any) -> str:
    """Write learnable pictures (3 classes, 12 each and 2 to test on, 8 pixels a side); return their URI."""
    rng = np.random.default_rng(7)
    prototypes = rng.random((3, 1, 8, 8))
    arrays = {}
    for name, each in (("train", 12), ("test", 2)):
        labels = np.repeat(np.arange(3), each)
        noise = rng.random((len(labels), 1, 8, 8))
        arrays[f"x_{name}"] = ((0.6 * prototypes[labels] + 0.4 * noise) * 255).astype(np.uint8)
        arrays[f"y_{name}"] = labels
    np.savez(path, **arrays)
    return f"npz:{path}"

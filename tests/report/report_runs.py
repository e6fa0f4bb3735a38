"""Run folders built by hand, as small as they can be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from attar.artifacts import Artifact, DistilledSet, Selection, Student
from attar.data import Images
from attar.nets import MLP

HOSTILE = "<script>alert(1)</script></style><img src=x onerror=alert(1)>\"'"


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def real_images(classes: list[str], channels: int, size: int, each: int = 6) -> Images:
    rng = torch.Generator().manual_seed(7)
    return Images(
        pixels=torch.randint(0, 256, (len(classes) * each, channels, size, size), generator=rng, dtype=torch.uint8),
        labels=torch.arange(len(classes)).repeat_interleave(each),
        classes=tuple(classes),
        mean=torch.full((channels,), 0.4),
        std=torch.full((channels,), 0.3),
        source="fashion-mnist-mini",
    )


def evaluation() -> dict[str, Any]:
    def arm(name: str, values: list[float], images: int, seconds: float) -> dict[str, Any]:
        mean = sum(values) / len(values)
        std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        return {
            "name": name, "accuracy": mean, "accuracy_std": std, "accuracies": values,
            "images": images, "bytes": images * 784, "steps": 3000, "seconds": seconds,
        }  # fmt: skip

    arms = [
        arm("distilled", [0.760, 0.770, 0.780], 100, 12.3),
        arm("random", [0.700, 0.722, 0.744], 100, 12.1),
        arm("full", [0.840, 0.842, 0.844], 10_000, 14.9),
    ]
    cross = [{"net": "mlp", "arms": arms[:2]}, {"net": {"kind": "resnet18", "norm": "batch"}, "arms": arms[:2]}]
    return {
        "protocol": {"epochs": 300, "augment": "dsa"}, "data": "fashion-mnist-mini", "networks": 3,
        "arms": arms, "cross": cross,
    }  # fmt: skip


def metrics(steps: int = 300) -> str:
    lines = [
        json.dumps({"loop": "match", "step": step, "time": step / 10, "loss": 500 * math.exp(-step / 40) + 0.02})
        for step in range(steps)
    ]
    return "\n".join(lines) + '\n{"loop": "match", "st'  # a killed process leaves half a line


def build_run(folder: Path, data: Images, ipc: int = 2, *, kind: str = "distilled-set") -> Path:
    """Write a finished and evaluated run of `dm` by hand."""
    write(
        folder / "recipe.json",
        {
            "id": "dm", "version": 1, "preset": "small", "seed": 3, "hash": "c0ffee00" * 8,
            "fields": {"ipc": ipc, "steps": 300, "net": {"kind": "convnet", "depth": 2, "width": 32}},
            "inputs": {"data": "fashion-mnist-mini"},
        },
    )  # fmt: skip
    write(folder / "plan.json", {"threads": 2, "chunk": 1, "compile": False, "device": "cpu", "precision": "float32"})
    versions = {"attar": "0.1.0", "torch": "2.13.0"}
    write(
        folder / "run.json",
        {
            "state": "finished", "seconds": 192.4, "fingerprint": "ab12" * 16, "versions": versions,
            "machine": {"system": "Linux", "cores": 2}, "started": "2025-01-01T00:00:00+00:00",
        },
    )  # fmt: skip
    (folder / "metrics.jsonl").write_text(metrics())
    write(folder / "evaluation.json", evaluation())
    artifact(data, ipc, kind).save(folder / "artifact")
    return folder


def artifact(data: Images, ipc: int, kind: str) -> Artifact:
    rng = torch.Generator().manual_seed(1)
    if kind == "distilled-set":
        shape = (ipc * data.num_classes, data.channels, data.size, data.size)
        return DistilledSet(
            torch.randn(shape, generator=rng), torch.arange(data.num_classes).repeat_interleave(ipc), data
        )
    if kind == "selection":
        return Selection(data.draw(ipc, rng).flatten(), data.fingerprint, data.source)
    spec = MLP()
    return Student(spec.build(data.channels, data.size, data.num_classes), spec, data.channels, data.size, data.classes)

"""Presets that the methods of trajectory matching share."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "ipc": 1,
    "steps": 120,
    "student_steps": 10,
    "window": {"stop": 4},
    "optimizer": {"lr": 20.0},
    "step_size": 0.02,
    "step_size_lr": 1e-5,
    "net": {"depth": 2, "width": 32},
    "experts": {"count": 3, "epochs": 12, "images": 6000, "optimizer": {"lr": 0.02}},
}  # one image a class on 14 pixels: 25 s and the experts


def row(ipc: int, table: tuple[float, ...], **more: Any) -> dict[str, Any]:
    """Return a preset from a row of the papers' tables: (T, M, start epochs, lr of the pixels, lr of α, first α)."""
    steps, epochs, stop, lr, rate, first = table
    return {
        "ipc": ipc,
        "student_steps": int(steps),
        "expert_epochs": int(epochs),
        "window": {"stop": int(stop)},
        "optimizer": {"lr": float(lr)},
        "step_size_lr": rate,
        "step_size": first,
        **more,
    }

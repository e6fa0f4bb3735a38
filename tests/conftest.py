"""Shared by all areas: pictures so small that a step takes a millisecond, and runs in a folder of their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

from attar.data import Images
from attar.run import Plan, Run

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # what else a machine does is no fault of an example


@pytest.fixture
def tiny_images():
    """Return a function that makes learnable pictures: a random prototype a class, and noise."""

    def make(classes=3, channels=1, size=8, *, each=12, seed=7, source="memory"):
        rng = torch.Generator().manual_seed(seed)
        prototypes = torch.rand(classes, 1, channels, size, size, generator=rng)
        noise = torch.rand(classes, each, channels, size, size, generator=rng)
        pixels = ((0.6 * prototypes + 0.4 * noise) * 255).to(torch.uint8).flatten(0, 1)
        return Images(
            pixels=pixels,
            labels=torch.arange(classes).repeat_interleave(each),
            classes=tuple(f"class {label}" for label in range(classes)),
            mean=torch.full((channels,), 0.5),
            std=torch.full((channels,), 0.25),
            source=source,
        )

    return make


@pytest.fixture
def open_run(tmp_path, monkeypatch):
    """Return a function that opens a run in a new folder; the caches lie in the test's own home."""
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    opened = []

    def make(seed=0, copy=0, **plan):
        opened.append(tmp_path / f"run-{len(opened)}")
        return Run(opened[-1], seed=seed, copy=copy, plan=Plan(**plan))

    return make

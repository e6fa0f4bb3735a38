"""Toy runs in folders of their own."""

from __future__ import annotations

import pytest
import torch

from attar.run import Plan, Run


@pytest.fixture(autouse=True)
def _quiet_home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    torch.set_num_threads(1)


@pytest.fixture
def start(tmp_path):
    """Return a function that opens a run in `folder`, with a checkpoint after every step unless told otherwise."""

    def make(folder="run", **settings):
        plan = Plan(**settings.pop("plan", {}))
        return Run(tmp_path / folder, **{"plan": plan, "checkpoint_seconds": 0.0, "recipe": "toy", **settings})

    return make

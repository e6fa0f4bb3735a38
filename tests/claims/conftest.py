"""One home a file: equal teachers, students and stages of its claims are made once."""

import pytest
import torch


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _quiet_at_home(home, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("ATTAR_HOME", str(home))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")

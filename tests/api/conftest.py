import numpy as np
import pytest
import torch

from attar.run import Plan, plan


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder, with caches of its own, in one process."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    choose = plan.choose

    def alone(size=0, overrides=None):
        return choose(size, {"workers": 1, "compile": False, "threads": 1, **(overrides or {})})

    monkeypatch.setattr(plan, "choose", alone)
    assert isinstance(alone(), Plan)
    return work


@pytest.fixture
def pictures(tmp_path, tiny_images):
    """Return the URI of a tiny data set: three classes of twelve and six 8-px images."""
    train, test = (
        tiny_images(each=12),
        tiny_images(each=18).subset(torch.cat([torch.arange(12, 18) + 18 * c for c in range(3)])),
    )
    path = tmp_path / "pictures.npz"
    names = {"x_train": train.pixels, "y_train": train.labels, "x_test": test.pixels, "y_test": test.labels}
    np.savez(path, **{name: tensor.numpy() for name, tensor in names.items()})
    return f"npz:{path}"

"""Methods whose data lie on another device keep their tensors there, where CPU indices and CPU draws may not go."""

import dataclasses

import pytest
import torch

import tiny
from attar import api, ledger
from attar.artifacts import DistilledSet
from attar.data import ZCA
from attar.run import plan
from elsewhere import HERE, THERE, elsewhere, place

METHODS = [row.id for row in ledger.rows() if ledger.exists(row.code)]


@pytest.fixture
def there(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    monkeypatch.setattr(plan, "_check_device", lambda device: None)
    tiny.one_worker(tmp_path / "home")
    with elsewhere():
        yield


def test_what_a_device_refuses_is_refused(there):
    rows, numbers = torch.arange(3), torch.ones(3, device="cuda")
    assert numbers[rows].device == (numbers * torch.tensor(2.0)).device == numbers[:2].double().device == THERE
    assert (numbers.cpu() + 1).device == torch.zeros(2).to(numbers).cpu().device == HERE
    refused = [
        lambda: rows[numbers.long()],
        lambda: numbers + rows,
        lambda: numbers.index_select(0, rows),
        numbers.numpy,
        lambda: torch.randn(3, generator=torch.Generator(), device="cuda"),
        lambda: torch.empty_like(numbers).normal_(generator=torch.Generator()),
    ]
    for wrong in refused:
        with pytest.raises(RuntimeError):
            wrong()


def made_there(id, folder):
    settings = {**tiny.settings(id), "device": "cuda"}
    return api.run(id, data=tiny.write_data(folder / "data.npz"), out=str(folder / "run"), **settings)


@pytest.mark.parametrize("id", METHODS)
def test_a_method_runs_where_its_data_lie(id, there, tmp_path):
    made = made_there(id, tmp_path)
    if isinstance(made, DistilledSet):
        assert place(made.images) == place(made.labels) == THERE


@pytest.mark.parametrize(
    ("id", "settings"),
    [
        ("dm", {"training.steps": 2}),
        ("sre2l", {"training.steps": 2}),
        ("hello", {"training.steps": 2}),
        ("krr-st", {"shots": 5, "pretraining.steps": 2, "finetuning.steps": 2}),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_set_still_in_memory_is_judged(id, settings, there, tmp_path):
    made = made_there(id, tmp_path)
    assert api.evaluate(made, networks=1, **settings)["arms"][0]["name"] == "distilled"


def test_pictures_of_whitened_images_are_made_here(there, tiny_images):
    images = tiny_images()
    whitened = dataclasses.replace(images, whitening=ZCA.fit(images.pixels)).to("cuda")
    chosen = torch.tensor([0, 12, 24])
    pixels = DistilledSet.from_indices(whitened, chosen).pixels()
    assert place(pixels) == HERE
    assert torch.allclose(pixels, images.unit(chosen), atol=1e-4)

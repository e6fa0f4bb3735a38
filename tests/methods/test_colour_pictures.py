"""Methods run on real colour pictures of any square size: by means, on trajectories, and inverting a teacher."""

import pytest
import torch

import tiny
from attar import api
from attar.data import Splits, load

SETTINGS = {
    "dm": {"steps": 3},
    "mtt": {"steps": 2, "experts.images": 63, "experts.batch": 63},
    "sre2l": {"steps": 2},
    "fyi": {"base": "mtt", **{f"base.{k}": v for k, v in tiny.TINY["mtt"].items()}, "base.experts.images": 63},
}


@pytest.fixture(scope="module")
def known():
    return {uri: load(uri) for uri in ("emoji?size=16", "photo-patches?size=32")}


@pytest.mark.pictures
@pytest.mark.parametrize(
    ("id", "uri"),
    [
        ("dm", "photo-patches?size=32"),
        ("mtt", "photo-patches?size=32"),
        ("sre2l", "photo-patches?size=32"),
        ("dm", "emoji?size=16"),
        ("mtt", "emoji?size=16"),
        ("fyi", "emoji?size=16"),
        ("sre2l", "emoji?size=16"),
    ],
)
def test_it_makes_colour_pictures(id, uri, known, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    tiny.one_worker(tmp_path / "home")
    splits: Splits = known[uri]
    settings = {**({} if id == "fyi" else tiny.settings(id)), **SETTINGS[id], "threads": 1}
    made = api.run(id, data=splits.train, seed=1, out=str(tmp_path / "run"), **settings)
    size, classes = splits.train.size, splits.train.num_classes
    assert made.images.shape == (made.ipc * classes, 3, size, size)
    assert torch.isfinite(made.images).all()
    channels = made.images.transpose(0, 1).flatten(1)
    assert (channels[0] - channels[2]).abs().mean() > 0.05  # colours, not three copies of one channel
    assert len(made.mean) == len(made.std) == 3
    assert (tmp_path / "run" / "artifact" / "preview.png").exists()

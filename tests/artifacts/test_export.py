"""What is exported reads back through the data sources, class by class and pixel by pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from attar.artifacts import DistilledSet, Selection, Student
from attar.artifacts.export import FORMATS, export
from attar.data import sources
from attar.errors import AttarError, RecipeError
from attar.nets import ConvNet

SCHEME = {"parquet": "parquet", "imagefolder": "folder", "npz": "npz"}


def exact(images, ipc=2):
    """Real images, so that 8 bits lose nothing."""
    return DistilledSet.from_real(images, ipc, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("to", FORMATS)
def test_every_format_reads_back_as_data(tiny_images, tmp_path, to, channels):
    made = exact(tiny_images(channels=channels))
    out = export(made, to, tmp_path / "out")
    assert out == tmp_path / "out"
    back = sources.load(f"{SCHEME[to]}:{out}").train
    both = sources.load(f"{SCHEME[to]}:{out}")
    pixels = torch.cat([back.unit(), both.test.unit()])
    labels = torch.cat([back.labels, both.test.labels])
    assert len(pixels) == len(made)  # a source draws its missing test split from these

    def order(images, labels):
        eight_bit = (images * 255).round().int().flatten(1).tolist()
        return sorted(zip(labels.tolist(), eight_bit, strict=True))

    assert order(pixels, labels) == order(made.pixels(), made.labels)
    if to != "npz":
        assert back.classes == made.classes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_npz_holds_the_exact_numbers_and_their_space(tiny_images, tmp_path):
    made = exact(tiny_images(channels=3))
    made.images = made.images * 3  # outside what pictures can show
    with np.load(export(made, "npz", tmp_path / "set.npz"), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["normalised"], made.images.numpy())
        assert np.array_equal(arrays["mean"], made.mean.numpy())
        assert np.array_equal(arrays["std"], made.std.numpy())
        assert arrays["classes"].tolist() == list(made.classes)
        assert arrays["images"].min() >= 0
        assert arrays["images"].max() <= 1
        restored = (arrays["images"] - arrays["mean"][:, None, None]) / arrays["std"][:, None, None]
        inside = (arrays["images"] > 0) & (arrays["images"] < 1)
        assert np.allclose(restored[inside], arrays["normalised"][inside], atol=1e-5)


def test_parquet_holds_the_exact_numbers_beside_pictures(tiny_images, tmp_path):
    import datasets
    import pyarrow.parquet

    made = exact(tiny_images(channels=3))
    made.images = made.images + 1e-4
    table = datasets.Dataset(pyarrow.parquet.read_table(export(made, "parquet", tmp_path / "set.parquet")))
    assert np.array_equal(np.array(table["pixels"], dtype=np.float32), made.images.numpy())
    assert table["label"] == [0, 0, 1, 1, 2, 2]
    assert type(table.features["image"]).__name__ == "Image"


def test_soft_labels_travel_along(tiny_images, tmp_path):
    made = exact(tiny_images())
    made.labels = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.7, 0.1]]).repeat_interleave(2, 0)
    told = json.loads((export(made, "imagefolder", tmp_path / "folder") / "labels.json").read_text())
    assert told["soft_labels"]["class 1/00002.png"] == pytest.approx([0.1, 0.6, 0.3])
    assert sorted(path.name for path in (tmp_path / "folder" / "class 1").iterdir()) == [
        f"0000{n}.png" for n in (2, 3, 4, 5)
    ]
    with np.load(export(made, "npz", tmp_path / "set.npz")) as arrays:
        assert np.array_equal(arrays["soft_labels"], made.labels.numpy())
        assert arrays["labels"].tolist() == [0, 0, 1, 1, 1, 1]


def test_class_names_never_leave_the_folder_and_keep_their_order(tiny_images, tmp_path):
    images = tiny_images()
    images.classes = ("../../zebra", "a/b", "T-shirt")
    out = export(exact(images), "imagefolder", tmp_path / "deep" / "out")
    assert sorted(path.name for path in out.iterdir()) == ["0-______zebra", "1-a_b", "2-T-shirt", "labels.json"]
    assert json.loads((out / "labels.json").read_text())["classes"]["0-______zebra"] == "../../zebra"
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_selection_exports_the_chosen_real_images(tiny_images, tmp_path):
    data = tiny_images()
    chosen = Selection(torch.tensor([2, 15, 30]), data.fingerprint, "digits")
    with np.load(export(chosen, "npz", tmp_path / "chosen.npz", data)) as arrays:
        assert np.allclose(arrays["images"], data.unit(torch.tensor([2, 15, 30])).numpy(), atol=1e-6)
        assert arrays["labels"].tolist() == [0, 1, 2]
    with pytest.raises(AttarError, match="only indices into 'digits'"):
        export(chosen, "npz", tmp_path / "again.npz")


def test_what_stands_there_is_never_overwritten(tiny_images, tmp_path):
    made = exact(tiny_images())
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "empty", "dangling"):
        with pytest.raises(AttarError, match="exists and is not overwritten"):
            export(made, "npz", tmp_path / name)
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(tiny_images, tmp_path, monkeypatch):
    def full(images, path):
        path.mkdir()
        (path / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(FORMATS, "npz", full)
    with pytest.raises(AttarError, match="the disk is full"):
        export(exact(tiny_images()), "npz", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_other_artifacts_are_refused(tiny_images, tmp_path):
    with pytest.raises(RecipeError, match="unknown format 'parket'; did you mean 'parquet'"):
        export(exact(tiny_images()), "parket", tmp_path / "out")
    net = ConvNet(depth=1, width=8)
    student = Student(net.build(1, 8, 3), net, 1, 8, ("a", "b", "c"))
    with pytest.raises(AttarError, match="a student cannot be exported as images"):
        export(student, "npz", tmp_path / "out")

"""Artifacts load back as they were, whatever is wrong with a folder is said, and nothing is ever unpickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from attar import nets
from attar.artifacts import DistilledSet, Selection, Student, fingerprint_of, load
from attar.data import ZCA
from attar.errors import AttarError, DamagedFile, Interrupted
from attar.nets import ConvNet


def distilled(images, kind="hard"):
    made = DistilledSet.from_real(images, 2, torch.Generator().manual_seed(0), protocol="dsa")
    if kind == "soft":
        made.labels = torch.rand(len(made), 3).softmax(1)
    if kind == "zca":
        made.whitening = ZCA.fit(images.pixels)
    made.images = made.images + 0.123
    made.parents = {"teacher": "abc"}
    return made


def student(images):
    net = ConvNet(depth=1, width=8, norm="batch")
    return Student(nets.fresh(net, images, torch.Generator().manual_seed(0)).eval(), net, 1, 8, images.classes)


class WithStore(Selection):
    def attach(self, folder):
        (folder / "store.bin").write_bytes(b"big")


def test_what_an_artifact_attaches_is_saved_and_replaced_with_it(tmp_path):
    made = WithStore(torch.arange(3), "x", "memory")
    made.save(tmp_path / "a")
    made.save(tmp_path / "a")
    assert (tmp_path / "a" / "store.bin").read_bytes() == b"big"


@pytest.mark.parametrize("kind", ["hard", "soft", "zca"])
def test_a_distilled_set_loads_back(tiny_images, tmp_path, kind):
    made = distilled(tiny_images(channels=3), kind)
    again = load(made.save(tmp_path / "set"))
    assert torch.equal(again.images, made.images)
    assert torch.equal(again.labels, made.labels)
    assert torch.equal(again.pixels(), made.pixels())
    assert torch.equal(again.mean, made.mean)
    assert torch.equal(again.std, made.std)
    assert again.fingerprint == made.fingerprint
    assert (again.classes, again.hints, again.parents) == (made.classes, made.hints, made.parents)
    assert (again.ipc, again.num_classes, again.size) == (2, 3, 8)
    assert (tmp_path / "set" / "preview.png").exists()


def test_a_selection_loads_back_and_gives_its_real_images(tiny_images, tmp_path):
    data = tiny_images()
    made = Selection(torch.tensor([30, 2, 15]), data.fingerprint, "tiny", weights=torch.rand(3), scores=torch.rand(36))
    again = load(made.save(tmp_path / "selection"))
    assert again.fingerprint == made.fingerprint
    assert torch.equal(again.weights, made.weights)
    assert torch.equal(again.distilled(data).images, data.normalised(torch.tensor([2, 15, 30])))
    with pytest.raises(AttarError, match="is not the same data"):
        again.distilled(tiny_images(seed=8))


def test_a_student_loads_back_with_its_batch_statistics(tiny_images, tmp_path):
    made = student(tiny_images())
    made.module.train()(torch.randn(16, 1, 8, 8))
    made.module.eval()
    again = load(made.save(tmp_path / "student"))
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(again.module(x), made.module(x))
    assert again.net == made.net
    assert again.fingerprint == made.fingerprint


def test_a_fingerprint_changes_with_name_type_shape_and_every_bit():
    x = torch.arange(6.0)
    same = fingerprint_of({"x": x.clone(), "y": x})
    assert same == fingerprint_of({"y": x, "x": x})
    assert same == fingerprint_of({"x": torch.stack([x, x], 1)[:, 0], "y": x})  # however it lies in memory
    others = [
        {"x": x, "z": x},
        {"x": x.double(), "y": x},
        {"x": x.view(2, 3), "y": x},
        {"x": x + torch.tensor([0, 0, 0, 0, 0, 1e-6]), "y": x},
        {"x": x},
    ]
    assert len({same, *map(fingerprint_of, others)}) == 6


def test_other_forms_hold_the_same_numbers(tiny_images):
    made = distilled(tiny_images())
    images, labels = made.numpy()
    dataset = made.dataset()
    assert len(dataset) == 6
    assert torch.equal(dataset[3][0], made.images[3])
    assert dataset[3][1] == 1
    assert np.array_equal(images, made.images.numpy())
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    table = made.to_datasets()
    assert np.array_equal(np.array(table["pixels"], dtype=np.float32), images)
    assert table.features["label"].names == list(made.classes)
    assert np.array_equal(np.array(table[0]["image"]), (made.pixels()[0, 0] * 255).round().numpy())


def test_saving_replaces_an_artifact_and_nothing_else(tiny_images, tmp_path):
    made = distilled(tiny_images())
    made.save(tmp_path / "set")
    made.images = made.images * 2
    made.save(tmp_path / "set")
    assert load(tmp_path / "set").fingerprint == made.fingerprint
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(AttarError, match="is not an artifact"):
        made.save(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "set"]


def test_a_failing_save_leaves_the_artifact_before(tiny_images, tmp_path, monkeypatch):
    made = distilled(tiny_images())
    made.save(tmp_path / "set")
    before = made.fingerprint

    def full(path):
        raise OSError(28, "No space left on device")

    made.images = made.images * 2
    monkeypatch.setattr(made, "preview", full)
    with pytest.raises(AttarError, match="the disk is full"):
        made.save(tmp_path / "set")
    assert load(tmp_path / "set").fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def rewrite(folder, **changes):
    about = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps({**about, **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 99}, "format 99, newer than 1: update attar"),
        ({"format": "x"}, "newer than"),
        ({"kind": "sculpture"}, "describes a 'sculpture'"),
        ({"kind": "os:system"}, "describes a 'os:system'"),
        ({"tensors": []}, "does not match the checksum"),
        ({"tensors": {"sha256": "0"}}, "does not match the checksum"),
        ({"classes": None}, "does not describe a distilled-set"),
        ({"mean": ["a"]}, "does not describe a distilled-set"),
        ({"hints": 3}, "does not describe a distilled-set"),
    ],
)
def test_what_does_not_describe_an_artifact_is_refused_clearly(tiny_images, tmp_path, changes, says):
    folder = distilled(tiny_images()).save(tmp_path / "set")
    rewrite(folder, **changes)
    with pytest.raises(AttarError, match=says):
        load(folder)


def test_a_flipped_bit_anywhere_in_the_tensors_is_noticed(tiny_images, tmp_path):
    folder = distilled(tiny_images()).save(tmp_path / "set")
    path = folder / "tensors.safetensors"
    whole = path.read_bytes()
    for place in (0, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DamagedFile, match="changed or damaged"):
            load(folder)
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedFile):
        load(folder)
    path.unlink()
    with pytest.raises(DamagedFile, match="is missing"):
        load(folder)


def test_a_folder_without_an_artifact_is_named(tmp_path):
    with pytest.raises(AttarError, match="holds no artifact"):
        load(tmp_path / "none")
    (tmp_path / "artifact.json").write_text("[]")
    with pytest.raises(AttarError, match="known kinds"):
        load(tmp_path)
    (tmp_path / "artifact.json").write_text("{")
    with pytest.raises(DamagedFile, match="not readable as JSON"):
        load(tmp_path)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("honest", [True, False], ids=["with its checksum", "without"])
def test_a_pickle_in_the_place_of_tensors_is_never_loaded(tiny_images, tmp_path, monkeypatch, honest):
    from attar.files import sha256

    monkeypatch.chdir(tmp_path)
    folder = distilled(tiny_images()).save(tmp_path / "set")
    (folder / "tensors.safetensors").write_bytes(pickle.dumps(Bomb()))
    if honest:
        rewrite(folder, tensors={"sha256": sha256(folder / "tensors.safetensors")})
    with pytest.raises(DamagedFile):
        load(folder)
    assert not (tmp_path / "exploded").exists()


def test_paths_in_an_artifact_lead_nowhere(tiny_images, tmp_path):
    folder = distilled(tiny_images()).save(tmp_path / "set")
    (tmp_path / "outside.safetensors").write_bytes((folder / "tensors.safetensors").read_bytes())
    (folder / "tensors.safetensors").unlink()
    rewrite(folder, tensors={"file": "../outside.safetensors", "path": str(tmp_path / "outside.safetensors")})
    with pytest.raises(DamagedFile, match=r"set/tensors\.safetensors is missing"):
        load(folder)


def test_a_signal_while_an_artifact_is_rebuilt_is_no_damage(tmp_path, monkeypatch):
    Selection(torch.tensor([1, 2]), "of", "digits").save(tmp_path / "kept")

    def interrupted(*given):
        raise Interrupted("stopped", 2)

    monkeypatch.setattr(Selection, "rebuild", interrupted)
    with pytest.raises(Interrupted):
        load(tmp_path / "kept")

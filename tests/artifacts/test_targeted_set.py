"""A set with targets is saved with them, differs by them, and refuses what does not fit."""

import dataclasses

import pytest
import torch

from attar import recipes
from attar.artifacts import DistilledSet, load
from attar.artifacts.targeted import TargetedSet
from attar.errors import AttarError, DamagedFile
from attar.files import read_json, save_tensors, write_json
from attar.methods.data.krr_st import unlabelled
from attar.report.card import snippet


@pytest.fixture
def made(tiny_images):
    images = DistilledSet.from_real(tiny_images(), 2, torch.Generator().manual_seed(0), protocol="frepo")
    return TargetedSet.of(images, torch.arange(24.0).view(6, 4).requires_grad_())


def test_targets_are_saved_and_loaded_with_the_images(made, tmp_path):
    made.save(tmp_path / "set")
    again = load(tmp_path / "set")
    assert isinstance(again, TargetedSet)
    assert torch.equal(again.targets, made.targets)
    assert torch.equal(again.labels, made.labels)
    assert again.hints == {"protocol": "frepo"}
    assert again.fingerprint == made.fingerprint
    assert made.bytes == made.images.numel() * 4 + 6 * 8 + 24 * 4  # targets count


def test_targets_belong_to_the_fingerprint_and_keep_no_graph(made):
    assert not made.targets.requires_grad
    assert TargetedSet.of(made, made.targets + 1).fingerprint != made.fingerprint
    assert made.labelled


@pytest.mark.parametrize("targets", [torch.ones(5, 4), torch.ones(6), torch.ones(6, 4).double()])
def test_targets_that_do_not_fit_are_refused(made, targets):
    with pytest.raises(ValueError, match=r"not float32 \[6, d\]"):
        TargetedSet.of(made, targets)


def test_a_file_without_targets_is_a_damaged_one(made, tmp_path):
    folder = made.save(tmp_path / "set")
    tensors = {name: tensor for name, tensor in made.tensors().items() if name != "targets"}
    size, checksum = save_tensors(folder / "tensors.safetensors", tensors)
    about = read_json(folder / "artifact.json")
    write_json(folder / "artifact.json", {**about, "tensors": {"size": size, "sha256": checksum}})
    with pytest.raises(DamagedFile, match="does not describe a targeted-set"):
        load(folder)


def test_a_set_without_labels_is_no_data_for_methods_that_need_them(tiny_images, monkeypatch):
    data = dataclasses.replace(tiny_images(), source="digits")
    bare = unlabelled(data, torch.arange(4))
    recipe = recipes.make("random", {"data": TargetedSet.of(bare, torch.ones(4, 5))})
    with pytest.raises(AttarError, match="this set has no labels"):
        recipes.resolve(recipe)


def test_its_card_tells_how_to_read_the_pairs(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made.save(tmp_path / "set")
    read = {}
    exec(snippet("targeted-set", "set"), read)
    assert torch.equal(read["images"], made.images)
    assert torch.equal(read["targets"], made.targets)

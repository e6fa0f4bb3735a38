"""Grading a trained network: on the right data, beside its teacher, with numbers that are its own."""

from __future__ import annotations

import json

import pytest
import torch

import tiny
from attar import api
from attar.data import load
from attar.errors import AttarError
from attar.nets import ConvNet
from attar.recipes import make


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    data = tiny.write_data(tmp_path / "data.npz")
    settings = {**tiny.settings("kd"), "data": data}
    teacher = api.run_result("kd", **settings, out=str(tmp_path / "teacher"))
    settings |= {"teacher": str(tmp_path / "teacher"), "out": str(tmp_path / "run")}
    return data, teacher, api.run_result("kd", **settings)


def test_a_student_is_graded_beside_its_teacher(run):
    data, _, result = run
    outcome = api.evaluate(result.folder)
    assert [arm["name"] for arm in outcome["arms"]] == ["student", "teacher"]
    test, student = load(data).test, outcome["arms"][0]
    with torch.no_grad():
        logits = result.artifact.module(test.normalised())
    assert student["accuracy"] == pytest.approx(float((logits.argmax(1) == test.labels).double().mean()))
    assert student["nll"] == pytest.approx(
        float(-logits.log_softmax(1)[range(len(test)), test.labels].mean()), rel=1e-4
    )
    assert student["parameters"] == sum(p.numel() for p in result.artifact.module.parameters())
    assert json.loads((result.folder / "evaluation.json").read_text())["arms"][0]["nll"] == student["nll"]
    assert "student" in (result.folder / "report.html").read_text()


def test_a_student_without_data_or_with_other_data_is_refused(run):
    _, _, result = run
    with pytest.raises(AttarError, match="name it"):
        api.evaluate(result.artifact)
    with pytest.raises(AttarError, match="8×8"):
        api.evaluate(result.artifact, data="digits")
    for given in ({"networks": 3}, {"seed": 1}, {"training.epochs": 2}):
        with pytest.raises(AttarError, match=f"a student is evaluated without '{next(iter(given))}'; leave it out"):
            api.evaluate(result.folder, **given)


def test_an_encoder_is_probed_beside_an_untrained_one(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    data = tiny.write_data(tmp_path / "data.npz")
    result = api.run_result("mae", **tiny.settings("mae"), data=data, out=str(tmp_path / "run"))
    outcome = api.evaluate(result.folder)
    names = [arm["name"] for arm in outcome["arms"]]
    assert names == [f"{who}, {how}" for who in ("encoder", "untrained") for how in ("linear probe", "20 neighbours")]
    assert all(0 <= arm["accuracy"] <= 1 for arm in outcome["arms"])
    with pytest.raises(AttarError, match="encoder is evaluated without 'teacher'"):
        api.evaluate(result.folder, teacher=str(tmp_path / "run"))
    assert "linear probe on its frozen features" in (result.folder / "report.html").read_text()
    assert "embed(images)" in (result.folder / "artifact" / "README.md").read_text()


def test_another_module_is_another_recipe():
    def recipe(seed):
        torch.manual_seed(seed)
        return make("kd", {"data": "digits", "teacher": torch.nn.Linear(2, 2)}).hash

    assert recipe(0) == recipe(0)
    assert recipe(0) != recipe(1)
    assert (
        make("kd", {"data": "digits", "teacher": ConvNet(width=8)}).hash
        != make("kd", {"data": "digits", "teacher": ConvNet(width=16)}).hash
    )

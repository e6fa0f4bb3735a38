"""Students in the formats of runtimes: they compute what the network computes, on pixels, or nothing is written."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

import tiny
from attar import api, nets
from attar.artifacts import Student, deployed
from attar.data import load
from attar.errors import AttarError
from attar.nets import ConvNet


@pytest.fixture
def student(tiny_images):
    net = ConvNet(depth=1, width=4, norm="batch")
    module = nets.fresh(net, tiny_images(), torch.Generator().manual_seed(0))
    return Student(module.eval(), net, 1, 8, tiny_images().classes)


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_the_file_computes_what_the_network_computes_on_pixels(to, student, tiny_images, tmp_path):
    data = tiny_images()
    path = deployed.deploy(student, to, tmp_path / "net", data)
    pixels = data.unit(torch.arange(7))
    with torch.no_grad():
        wanted = student.module(data.normalised(torch.arange(7)))
    if to == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
    else:
        with path.open("rb") as file:
            found = torch.export.load(file).module()(pixels).detach().numpy()
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_computes_something_else_is_thrown_away(student, tmp_path, monkeypatch):
    monkeypatch.setitem(deployed.RUNTIMES, "torch", lambda program, path: lambda images: torch.zeros(len(images), 3))
    with pytest.raises(AttarError, match="other logits"):
        deployed.deploy(student, "torch", tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_images_are_no_networks(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    data = tiny.write_data(tmp_path / "data.npz")
    api.run("kd", **tiny.settings("kd"), data=data, out=str(tmp_path / "kd"))
    api.run("random", ipc=1, data=data, out=str(tmp_path / "random"))
    written = api.export(tmp_path / "kd", "torch", tmp_path / "net.pt2")
    with written.open("rb") as file:
        network = torch.export.load(file).module()
    images = load(data).train
    with torch.no_grad():
        assert network(images.unit(torch.arange(5))).shape == (5, 3)
    with pytest.raises(AttarError, match="exists"):
        api.export(tmp_path / "kd", "torch", written)
    with pytest.raises(AttarError, match="no network"):
        api.export(tmp_path / "random", "onnx", tmp_path / "x.onnx")


def test_a_network_that_cannot_be_traced_is_refused_with_the_reason(student, tmp_path):
    class Curious(torch.nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(AttarError, match="cannot be traced"):
        deployed.deploy(Student(Curious(), student.net, 1, 8, student.classes), "torch", tmp_path / "net")

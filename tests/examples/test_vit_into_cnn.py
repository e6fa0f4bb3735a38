"""The example of model distillation, with a transformer of a few random weights in the place of a large one."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "vit_into_cnn.py"


def test_a_transformer_teaches_a_cnn_on_a_folder(tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(low, low + 127, (70 + number, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    module = runpy.run_path(str(EXAMPLE))
    run = module["attar"].run
    monkeypatch.setattr(module["attar"], "run", lambda id, **given: run(id, **given | {"train": {"steps": 3}}))
    module["main"]("photos", str(tmp_path / "vit"))
    assert "student: " in capsys.readouterr().out
    assert Path("small-cnn.onnx").stat().st_size > 1000

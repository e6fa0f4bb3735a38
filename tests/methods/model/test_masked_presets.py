"""`preset=paper` of every masked method runs whole: only sizes are shrunk, so every default mechanism is on."""

import pytest
import torch

from attar import ledger
from attar.artifacts import Student
from attar.artifacts.autoencoder import Encoder
from attar.spec import build

NET = {"net.patch": 8, "net.width": 24, "net.depth": 4, "net.heads": 12}
DECODER = {"decoder.width": 16, "decoder.depth": 2, "decoder.heads": 4}
STEPS = {"train.steps": 2, "train.batch": 6}


def under(name, *parts):
    return {f"{name}.{key}": value for part in parts for key, value in part.items()}


SIZES = {
    "mae": {**NET, **DECODER, **STEPS},
    "dmae": {**NET, **DECODER, **STEPS, **under("teaching", NET, DECODER, STEPS)},
    "dmjd": {**NET, **DECODER, **STEPS},
    "fine-tuning": {**STEPS, **under("pretraining", NET, DECODER, STEPS)},
    "g2sd": {
        **under("generic", NET, DECODER, STEPS),
        **under("teaching", NET, DECODER, STEPS),
        **under("specific", STEPS),
        **under("tuning", STEPS),
    },
    "hybrid-distill": {
        **NET,
        **STEPS,
        **under("teaching", NET, DECODER, STEPS),
        **under("contrasting", NET, {"dimensions": 4, "projector": 8, "training.steps": 2, "training.batch": 6}),
    },
}


@pytest.mark.parametrize("id", SIZES)
def test_the_papers_setting_runs(id, tiny_images, open_run):
    data = tiny_images(classes=3, channels=3, size=32, each=4)
    method = build(ledger.method_class(id), SIZES[id], preset="paper", name=id)
    with open_run() as run:
        made = method(run, data=data)
    assert isinstance(made, Student)
    assert isinstance(made, Encoder) == (id not in {"g2sd", "fine-tuning"})
    assert all(torch.isfinite(tensor).all() for tensor in made.tensors().values())


@pytest.mark.parametrize("id", SIZES)
def test_the_small_preset_fits_pictures_of_28_pixels(id):
    method = build(ledger.method_class(id), {}, preset="small", name=id)
    nets = [method.net] if hasattr(method, "net") else []
    nets += [getattr(method, name).net for name in ("teaching", "pretraining", "generic") if hasattr(method, name)]
    assert nets
    assert {net.patch for net in nets} == {4}
    assert all(net.width <= 96 for net in nets)

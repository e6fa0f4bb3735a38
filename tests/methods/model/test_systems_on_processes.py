"""Two processes train the students of these systems as one does."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from attar import ledger, nets
from attar.artifacts import Student
from attar.nets import ConvNet
from attar.spec import build
from group import as_group
from students import steps

PLAIN = {"student": ConvNet(depth=1, width=4, norm="instance"), "train": steps(3, batch=8)}
FIELDS = {
    "sla": PLAIN,
    "quantized-distillation": {**PLAIN, "learn": "both", "rounding": "stochastic", "point_train": steps(3, batch=8)},
    "scalekd": {**PLAIN, "heads": (2, 2)},
    "ferkd": {**PLAIN, "passes": 3, "crops": 2},
    "mtard": {**PLAIN, "attack.steps": 2},
    "deit-lt": {
        "student": {"kind": "vit", "patch": 4, "width": 8, "depth": 1, "heads": 2, "pool": "class+distilled"},
        "train": steps(3, batch=8),
        "reweight_from": 0.5,
    },
    "random-teachers": {
        "net": ConvNet(depth=1, width=4, norm="instance"),
        "projection": {"hidden": (6,), "bottleneck": 4, "outputs": 8},
        "train.steps": 3,
        "train.batch": 8,
    },
}


def weights(run, *, id, data, teachers):
    made = build(ledger.method_class(id), FIELDS[id], preset="paper")
    inputs = {"sla": {}, "random-teachers": {}, "mtard": {"teacher": teachers}}.get(id, {"teacher": teachers[0]})
    student = made(run, data=data, **inputs)
    return torch.cat([p.detach().flatten() for p in student.module.parameters()])


@pytest.mark.parametrize("id", FIELDS)
def test_two_processes_give_what_one_gives(id, tiny_images, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    data, teachers = tiny_images(each=6), []
    for seed in (1, 2):
        net = ConvNet(depth=1, width=6, norm="instance")
        module = nets.fresh(net, data, torch.Generator().manual_seed(seed)).eval()
        teachers.append(Student(module, net, 1, 8, data.classes))
    work = functools.partial(weights, id=id, data=data, teachers=teachers)
    (one,) = as_group(1, tmp_path / "one", work)
    first, second = as_group(2, tmp_path / "two", work)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, one, rtol=1e-3, atol=1e-4)

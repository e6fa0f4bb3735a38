"""Two processes train a student on an objective with heads or memories as one does."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from attar import ledger, nets
from attar.artifacts import Student
from attar.nets import ConvNet
from attar.run import SGD, Constant
from attar.spec import build
from attar.train.objective import StudentTraining
from group import as_group

TRAIN = StudentTraining(steps=3, batch=7, augment="none", optimizer=SGD(lr=0.05), schedule=Constant())
FIELDS = {
    "crd": {"negatives": 9, "dimensions": 4},
    "ft": {"initial": 1.0},
    "ban": {"generations": 1},
    "ps-kd": {"train": dataclasses.replace(TRAIN, steps=5)},
}


def weights(run, *, id, norm, data, teacher):
    fields = {"student": ConvNet(depth=2, width=4, norm=norm), "train": TRAIN, **FIELDS.get(id, {})}
    made = build(ledger.method_class(id), fields, preset="paper")
    student = made(run, data=data, teacher=teacher)
    return torch.cat([p.detach().flatten() for p in student.module.parameters()])


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("id", ["crd", "vid", "cc", "ft", "ban", "simkd", "ps-kd", "cs-kd", "byot"])
def test_two_processes_give_what_one_gives(id, norm, tiny_images, tmp_path: Path):
    data = tiny_images(each=6)
    net = ConvNet(depth=2, width=6, norm=norm)
    module = nets.fresh(net, data, torch.Generator().manual_seed(1)).eval()
    teacher = Student(module, net, 1, 8, data.classes)
    work = functools.partial(weights, id=id, norm=norm, data=data, teacher=teacher)
    (one,) = as_group(1, tmp_path / "one", work)
    first, second = as_group(2, tmp_path / "two", work)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, one, rtol=1e-3, atol=1e-4)

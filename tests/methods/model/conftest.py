"""Shared by the tests of model distillation: a teacher of tiny pictures, and a function that trains a student."""

from __future__ import annotations

import pytest
import torch

from attar import nets
from attar.artifacts import Student
from attar.nets import ConvNet
from attar.run import SGD, Cosine
from attar.train.training import TensorSource, Training, fit

TEACHER = ConvNet(depth=2, width=6, norm="batch")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def data(tiny_images):
    return tiny_images(each=6)


@pytest.fixture
def teacher_of():
    """Return a function that trains a teacher on images, in a few steps."""

    def make(data, seed=1, net=TEACHER):
        module = nets.fresh(net, data, torch.Generator().manual_seed(seed))
        source = TensorSource(*data.batch(torch.arange(len(data))))
        fit(
            module,
            source,
            Training(steps=30, batch=len(data), optimizer=SGD(lr=0.1, momentum=0.9), schedule=Cosine()),
            lambda name, *counters: torch.Generator().manual_seed(seed + len(name) + sum(counters)),
        )
        return Student(module.eval(), net, data.channels, data.size, data.classes)

    return make


@pytest.fixture
def teacher(data, teacher_of):
    return teacher_of(data)

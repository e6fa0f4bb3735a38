"""Teachers that give their logits as `.logits`, as classifiers of transformers do, teach what plain ones teach."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attar.artifacts.autoencoder import Encoder
from attar.data.soft_labels.views import Views
from attar.methods.model.deit_lt import TailDistillation
from attar.methods.model.ferkd import CalibratedLabels
from attar.methods.model.finetune import Tuning
from attar.methods.model.g2sd import GenericToSpecific
from attar.methods.model.kernel_self_distillation import SelfDistillation
from attar.methods.model.masked.pretraining import Pretraining
from attar.methods.model.meal_v2 import EnsembleDistillation
from attar.methods.model.mtard import BalancedTeachers
from attar.methods.model.ssld import LabelFreeDistillation
from attar.metrics.attacks import Attack
from attar.nets import ViT
from attar.nets.masked import Decoder, fresh_autoencoder
from attar.run import AdamW
from attar.train.regression import Shape
from attar.train.teacher import Teacher, Teaching
from students import NET, steps

VIT = ViT(patch=4, width=8, depth=1, heads=2)
TRAIN = {"student": NET, "train": steps(3)}
TUNING = Pretraining(steps=3, batch=6, optimizer=AdamW(lr=0.01), warmup_epochs=0, views=Views(flip=0.0))


class Classifier(nn.Module):
    """A network whose output has `.logits`."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images):
        return SimpleNamespace(logits=self.module(images))


def encoder():
    made = fresh_autoencoder(
        VIT, Decoder(width=4, depth=0, heads=1), 4, Shape(1, 8, 1), torch.Generator().manual_seed(0)
    )
    return Encoder(made.encoder.eval(), VIT, 1, 8)


def deit_lt(run, data, one, other):
    fields = {**TRAIN, "student": ViT(patch=4, width=8, depth=1, heads=2, pool="class+distilled")}
    return TailDistillation(shown="clean", **fields)(run, data=data, teacher=one)


def ferkd(run, data, one, other):
    return CalibratedLabels(passes=3, crops=2, **TRAIN)(run, data=data, teacher=one)


def g2sd(run, data, one, other):
    return GenericToSpecific(specific=Tuning(train=TUNING))(run, data=data, start=encoder(), expert=Teacher.of(one))


def kernel_self_distillation(run, data, one, other):
    return SelfDistillation(generations=2, share="best", **TRAIN)(run, data=data, teacher=Teacher.of(one))


def meal_v2(run, data, one, other):
    method = EnsembleDistillation(crops=None, pretraining=Teaching(epochs=1), **TRAIN)
    return method(run, data=data, teacher=Teacher.of([one, other]))


def mtard(run, data, one, other):
    return BalancedTeachers(attack=Attack(steps=1), **TRAIN)(run, data=data, teacher=[one, other])


def ssld(run, data, one, other):
    method = LabelFreeDistillation(per_class=2, finetune_epochs=0, **TRAIN)
    return method(run, data=data, teacher=one, pool=data, scorer=other)


@pytest.mark.parametrize("method", [deit_lt, ferkd, g2sd, kernel_self_distillation, meal_v2, mtard, ssld])
def test_a_teacher_may_give_its_logits_by_name(method, data, teacher_of, open_run):
    pair, made = [teacher_of(data, seed=seed).module for seed in (1, 2)], []
    for teachers in (pair, [Classifier(module) for module in pair]):
        with open_run(threads=1) as run:
            made.append(method(run, data, *teachers).tensors())
    for name, tensor in made[0].items():
        torch.testing.assert_close(made[1][name], tensor)

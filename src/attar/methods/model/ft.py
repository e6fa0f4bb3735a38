"""FT: the student translates its map into what a paraphraser makes of the teacher's (arXiv 1802.04977)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from attar import losses
from attar.methods.model.initial import shortened
from attar.methods.model.places import ComparesStages, compared, total
from attar.methods.model.regressors import both_maps
from attar.run import SGD, Cosine
from attar.run.optimizers import Optimizer
from attar.spec import method
from attar.train.objective import Batch, Progress, Setting, Term
from attar.train.taps import Seen, read
from attar.train.training import Order

_SLOPE = 0.1  # of the leaky ReLUs, the paper's


@method
class FactorTransfer(ComparesStages):
    """Learn the factors of the teacher's last map (Kim et al. 2018, arXiv 1802.04977).

    First a paraphraser, an auto-encoder with `rate` of the channels in the middle, is trained on the teacher's map,
    with no student. Then L = hard · CE + weight · mean |a(t(F_s)) − a(p(F_t))|, with the student's translator t, and a
    the channel mean of squares, of length 1. Both nets are there for training alone.
    """

    last: ClassVar = 1

    weight: float = Field(200.0, ge=0)
    rate: float = Field(0.5, gt=0)  # channels of the factors, as a share of the teacher's
    initial: float = Field(30 / 240, gt=0)  # steps of the paraphraser, as a share of the student's
    paraphrasing: Optimizer = SGD(lr=0.05, momentum=0.9, weight_decay=5e-4)  # along half a cosine; CRD: 0.01

    def build(self, setting: Setting) -> nn.Module:
        """Train a paraphraser for each place of the teacher, and return it with the student's translator."""
        _, paths = self.taps(setting.student, setting.teacher)
        state = nn.Module()
        translators, encoders, decoders = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for mine, theirs in self.sizes(setting):
            both_maps(mine, theirs)
            factors = max(1, int(self.rate * theirs[0]))
            translators.append(_encoder(mine[0], factors))
            encoders.append(_encoder(theirs[0], factors))
            decoders.append(_decoder(factors, theirs[0]))
        self._paraphrase(setting, nn.ModuleList([encoders, decoders]).to(setting.run.device), paths)
        state.translators, state.encoders = translators, encoders.requires_grad_(False)
        return state

    def _paraphrase(self, setting: Setting, paraphrasers: Any, paths: Sequence[str]) -> None:
        """Train encoders and decoders to give back the teacher's maps."""
        run, teacher = setting.run, setting.teacher
        assert teacher is not None  # the places of its features were found
        train = shortened(setting.train, self.initial, len(setting.data))
        steps = train.total(len(setting.data))
        learner = run.learner("paraphraser", paraphrasers, self.paraphrasing, schedule=Cosine(), steps=steps)
        order = Order(setting.data, train, run.rng)
        for step in run.loop("paraphrase", steps):
            images, _ = order.batch(step)
            with torch.no_grad():  # every process the whole batch: a run that asked for shares once adds gradients up
                _, told = read(teacher, images, paths)
            gaps = [
                losses.hint_distance(decode(encode(told[path])), told[path])
                for encode, decode, path in zip(*paraphrasers, paths, strict=True)
            ]
            learner.update(total(gaps))

    def terms(self, state: Any, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        """Yield the distance of the factors."""
        nets = zip(state.translators, state.encoders, compared(student, teacher), strict=True)
        yield Term("factors", total([losses.factor_distance(t(mine), p(theirs)) for t, p, (mine, theirs) in nets]))


def _encoder(inputs: int, factors: int) -> nn.Sequential:
    """Return three 3×3 convolutions from a map to its factors, each with leaky ReLU."""
    widths = ((inputs, inputs), (inputs, factors), (factors, factors))
    return nn.Sequential(*(layer for a, b in widths for layer in (nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(_SLOPE))))


def _decoder(factors: int, outputs: int) -> nn.Sequential:
    """Return three transposed 3×3 convolutions from factors back to the map, each with leaky ReLU."""
    widths = ((factors, factors), (factors, outputs), (outputs, outputs))
    layers = ((nn.ConvTranspose2d(a, b, 3, padding=1), nn.LeakyReLU(_SLOPE)) for a, b in widths)
    return nn.Sequential(*(layer for pair in layers for layer in pair))

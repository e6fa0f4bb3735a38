"""DMJD: views complement each other, visible patches are told of themselves, and the rate counts what is new."""

import dataclasses

import pytest
import torch

from attar.data.soft_labels.views import Views
from attar.methods.model.dmjd import DisjointMasking
from attar.methods.model.mae import MaskedAutoencoding, joined
from attar.methods.model.masked.masks import random_masking
from attar.methods.model.masked.pretraining import Pretraining
from attar.methods.model.masked.targets import HOG, Pixels
from attar.nets import ViT
from attar.nets.masked import Decoder, Masking
from attar.run import AdamW

NET, DECODER = ViT(patch=2, width=8, depth=2, heads=2), Decoder(width=8, depth=1, heads=2)
TRAIN = Pretraining(steps=4, batch=6, optimizer=AdamW(lr=0.01), warmup_epochs=0, views=Views(scale=(1.0, 1.0), flip=0))
DMJD = DisjointMasking(net=NET, decoder=DECODER, train=TRAIN)


def masking(n=6, hidden=0.6):
    return random_masking(n, 4, hidden, torch.Generator().manual_seed(1))


def test_the_views_of_a_step_together_hide_every_patch():
    first, second = DMJD.maskings(9, 4, torch.Generator().manual_seed(0))
    assert (first.hidden | second.hidden).all()
    assert first.hidden.sum(1).eq(10).all()
    assert second.hidden.sum(1).eq(10).all()
    free = dataclasses.replace(DMJD, disjoint=False).maskings(9, 4, torch.Generator().manual_seed(0))
    assert not (free[0].hidden | free[1].hidden).all()
    assert len(dataclasses.replace(DMJD, views=3).maskings(2, 4, torch.Generator().manual_seed(0))) == 3


def test_a_visible_patch_is_told_of_itself_and_in_the_released_order_of_another():
    mask = masking()
    target = torch.arange(16.0).expand(6, 16)[:, :, None]
    assert torch.equal(DMJD.shown(target, mask)[:, :, 0], mask.kept.float())
    released = dataclasses.replace(DMJD, order="released").shown(target, mask)[:, :, 0]
    assert torch.equal(released, mask.kept.sort(1).values.float())
    assert not torch.equal(released, mask.kept.float())
    raster = Masking.of(torch.arange(16).expand(6, 16), 6)
    assert torch.equal(dataclasses.replace(DMJD, order="released").shown(target, raster), DMJD.shown(target, raster))


def test_both_branches_have_the_paper_s_errors(data, open_run):
    with open_run() as run:
        model = DMJD.fresh(run, data)
    state = DMJD.build(model, data, None)
    mask, images = joined([masking(), masking(hidden=0.6)]), data.normalised(torch.arange(6))
    target = HOG().of(images, NET, data).repeat(2, 1, 1)
    both = images.repeat(2, 1, 1, 1)
    found = {term.name: term for term in DMJD.terms(model, state, both, mask, target)}
    guesses = model(both, mask)
    expected = (guesses - target).square().mean(2)[mask.hidden].mean()
    torch.testing.assert_close(found["hidden"].loss, expected)
    gap = (state(model.latent(both, mask)[:, 1:]) - mask.take(target)).abs()
    smooth = torch.where(gap < 2, gap.square() / 4, gap - 1).mean()
    torch.testing.assert_close(found["visible"].loss, smooth)
    assert found["visible"].weight == 1.0
    kinds = [type(layer).__name__ for layer in state]
    assert kinds == ["Linear", "LayerNorm", "GELU"] * 2 + ["Linear", "LayerNorm", "Linear"]
    assert state[7].weight is None


def test_the_rate_grows_with_the_images_that_are_newly_guessed():
    method = DisjointMasking()
    assert method.optimizer(10**6).lr == pytest.approx(6e-4 * 512 / 256 / 0.6)
    assert method.optimizer(256).lr == pytest.approx(6e-4 / 0.6)
    assert dataclasses.replace(method, hidden=0.75).optimizer(512).lr == pytest.approx(6e-4 * 2 / 0.75)
    assert dataclasses.replace(DMJD, rate=None).optimizer(512) == TRAIN.optimizer
    assert (method.hidden, method.predicted, method.views, method.block) == (0.6, 1.0, 2, 2)
    assert (method.target, method.train.views.scale) == (HOG(), (0.5, 1.0))
    assert method.target.outputs(method.net, 3) == 108


def test_one_view_without_the_visible_branch_is_mae(data, open_run):
    plain = dataclasses.replace(DMJD, views=1, weight=0.0, rate=None, block=1, hidden=0.75, target=Pixels())
    plain = dataclasses.replace(plain, predicted=0.75)
    with open_run() as run:
        mine = plain(run, data=data)
    with open_run() as run:
        theirs = MaskedAutoencoding(net=NET, decoder=DECODER, train=TRAIN)(run, data=data)
    assert mine.fingerprint == theirs.fingerprint
    with open_run() as run:
        assert dataclasses.replace(plain, weight=1.0)(run, data=data).fingerprint != theirs.fingerprint

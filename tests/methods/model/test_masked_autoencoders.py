"""MAE and DMAE: what is minimised, that labels and hidden patches are not read, and what of the teacher is run."""

import dataclasses

import pytest
import torch

from attar import nets
from attar.artifacts import Student
from attar.artifacts.autoencoder import Autoencoder, Encoder
from attar.data.soft_labels.views import Views
from attar.errors import AttarError, DataError, RecipeError
from attar.methods.model.dmae import DistilledMaskedAutoencoding
from attar.methods.model.mae import MaskedAutoencoding, joined
from attar.methods.model.masked.masks import random_masking
from attar.methods.model.masked.pretraining import Pretraining
from attar.nets import ConvNet, ViT
from attar.nets.masked import Decoder, encode, fresh_autoencoder
from attar.run import AdamW, Cosine
from attar.train.regression import Shape

NET, DECODER = ViT(patch=2, width=8, depth=4, heads=2), Decoder(width=8, depth=1, heads=2)
WHOLE = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
TRAIN = Pretraining(steps=5, batch=6, optimizer=AdamW(lr=0.01), warmup_epochs=0, views=WHOLE)
MAE = MaskedAutoencoding(net=NET, decoder=DECODER, train=TRAIN)
DMAE = DistilledMaskedAutoencoding(net=NET, decoder=DECODER, train=TRAIN)


def autoencoder(net=NET, seed=0, size=8):
    made = fresh_autoencoder(net, DECODER, 4, Shape(1, size, 1), torch.Generator().manual_seed(seed)).eval()
    return Autoencoder.of(Encoder(made.encoder, net, 1, size), made.decoder, DECODER, {})


def masking(n=6):
    return random_masking(n, 4, 0.75, torch.Generator().manual_seed(1))


def terms(method, model, data, teacher=None):
    state = method.build(model, data, teacher)
    images = data.normalised(torch.arange(6))
    target = method.target.of(data.normalised(torch.arange(6)), method.net, data)
    return {t.name: t for t in method.terms(model, state, images, masking(), target)}, state


def test_the_error_is_the_mean_square_over_hidden_patches_alone(data):
    model, mask = autoencoder().network, masking()
    found, _ = terms(MAE, model, data)
    images = data.normalised(torch.arange(6))
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(1, 3).flatten(2)
    errors = (model(images, mask) - patches).square().mean(2)
    assert found["pixels"].loss.item() == pytest.approx(errors[mask.hidden].mean().item(), rel=1e-5)
    assert found["pixels"].loss.item() != pytest.approx(errors.mean().item(), rel=1e-3)


def test_labels_change_nothing_and_training_lowers_the_error(data, open_run):
    wrong = dataclasses.replace(data, labels=data.labels.roll(6))
    longer = dataclasses.replace(MAE, train=dataclasses.replace(TRAIN, steps=60))
    with open_run() as first, open_run() as second:
        mine, theirs = longer(first, data=data), longer(second, data=wrong)
    assert mine.fingerprint == theirs.fingerprint
    with open_run() as run:
        before = MAE.fresh(run, data)
    start, end = (terms(MAE, model, data)[0]["pixels"].loss.item() for model in (before, mine.network))
    assert end < 0.8 * start


def test_the_positions_stay_while_it_learns_and_may_move_later(data, open_run):
    with open_run() as run:
        before = MAE.fresh(run, data).encoder.patches.positions.clone()
    with open_run() as run:
        made = MAE(run, data=data)
    assert torch.equal(made.module.patches.positions, before)
    assert made.module.patches.positions.requires_grad


def test_the_paper_s_settings():
    method = MaskedAutoencoding()
    assert (method.hidden, method.decoder) == (0.75, Decoder(width=512, depth=8, heads=16))
    assert method.train.optimizer.lr == pytest.approx(1.5e-4 * 4096 / 256)
    assert method.train.schedule(40_960) == Cosine(warmup=400)
    assert method.train.total(40_960) == 8000
    assert DistilledMaskedAutoencoding().train.schedule(40_960) == Cosine(warmup=200)
    assert DistilledMaskedAutoencoding().train.total(40_960) == 1000
    assert Pretraining(steps=50).schedule(100).warmup == 10


def test_views_of_a_batch_stand_behind_each_other():
    a, b = masking(3), random_masking(3, 4, 0.75, torch.Generator().manual_seed(9))
    both = joined([a, b])
    assert torch.equal(both.kept, torch.cat([a.kept, b.kept]))
    assert torch.equal(both.hidden[3:], b.hidden)


def test_features_are_the_mean_gap_of_unit_tokens_three_quarters_up(data):
    teacher = autoencoder(ViT(patch=2, width=12, depth=8, heads=3), seed=3)
    model, mask = autoencoder().network, masking()
    found, state = terms(DMAE, model, data, teacher)
    images = data.normalised(torch.arange(6))
    mine = state(encode(model.encoder, images, mask, blocks=3))
    theirs = encode(teacher.module, images, mask, blocks=6)
    gap = mine / mine.norm(dim=2, keepdim=True) - theirs / theirs.norm(dim=2, keepdim=True)
    assert found["features"].loss.item() == pytest.approx(gap.abs().mean().item(), rel=1e-5)
    assert found["features"].weight == 1.0
    assert found["pixels"].loss.item() == pytest.approx(terms(MAE, model, data)[0]["pixels"].loss.item(), rel=1e-5)
    assert len(state.layers) == 1


def test_a_student_that_is_its_teacher_has_no_distance(data):
    same = autoencoder()
    method = dataclasses.replace(DMAE, projector=0)
    found, _ = terms(method, autoencoder().network, data, same)
    assert found["features"].loss.item() == pytest.approx(0, abs=1e-7)


def test_of_the_teacher_only_the_first_three_quarters_run_and_on_visible_patches(data):
    teacher = autoencoder(ViT(patch=2, width=12, depth=8, heads=3), seed=3)
    passed, tokens = [], []
    for number, block in enumerate(teacher.module.stages):
        block.register_forward_hook(lambda _, given, out, number=number: passed.append(number))
    teacher.module.stages[0].register_forward_hook(lambda _, given, out: tokens.append(out.shape[1]))
    teacher.decoder.register_forward_hook(lambda *_: passed.append("decoder"))
    model, mask = autoencoder().network, masking()
    found, state = terms(DMAE, model, data, teacher)
    assert passed == [0, 1, 2, 3, 4, 5]
    assert tokens == [1 + 4]
    changed = data.normalised(torch.arange(6)).unfold(2, 2, 2).unfold(3, 2, 2).clone()
    changed[mask.hidden.unflatten(1, (4, 4))[:, None]] = 7.0  # what is hidden
    images = changed.transpose(3, 4).reshape(6, 1, 8, 8)
    target = DMAE.target.of(data.normalised(torch.arange(6)), NET, data)
    again = {t.name: t.loss for t in DMAE.terms(model, state, images, mask, target)}
    assert again["features"].item() == pytest.approx(found["features"].loss.item(), rel=1e-6)


def test_without_weight_it_is_mae_and_with_it_the_teacher_stays(data, open_run):
    teacher = autoencoder(seed=3)
    before = teacher.fingerprint
    made = {}
    for name, method in (("mae", MAE), ("none", dataclasses.replace(DMAE, weight=0.0)), ("dmae", DMAE)):
        with open_run() as run:
            made[name] = method(run, data=data, **({} if name == "mae" else {"teacher": teacher})).fingerprint
    assert made["mae"] == made["none"] != made["dmae"]
    assert teacher.fingerprint == before


def test_a_teacher_that_cannot_read_the_same_patches_is_refused(data, tiny_images):
    model = autoencoder().network
    conv = nets.fresh(ConvNet(depth=1, width=4), data, torch.Generator().manual_seed(0))
    with pytest.raises(AttarError, match="no vision transformer"):
        DMAE.build(model, data, Student(conv, ConvNet(depth=1, width=4), 1, 8, data.classes))
    with pytest.raises(AttarError, match=r"net\.patch=4"):
        DMAE.build(model, data, autoencoder(ViT(patch=4, width=8, depth=1, heads=2)))
    with pytest.raises(DataError, match="1×8×8"):
        DMAE.build(model, tiny_images(size=6), autoencoder())
    with pytest.raises(RecipeError, match="projector=1"):
        dataclasses.replace(DMAE, projector=0).build(model, data, autoencoder(ViT(patch=2, width=12, depth=1, heads=2)))


def test_a_projector_of_two_layers_has_a_nonlinearity_and_none_of_the_teacher_s_weights(data):
    state = dataclasses.replace(DMAE, projector=2).build(autoencoder().network, data, autoencoder(seed=2))
    assert [type(layer).__name__ for layer in state.layers] == ["Linear", "GELU", "Linear"]
    assert {name.split(".")[0] for name in state.state_dict()} == {"layers"}
    assert not any(p.requires_grad for p in state.teacher.parameters())
    assert state.double().teacher.head.weight.dtype == torch.float64

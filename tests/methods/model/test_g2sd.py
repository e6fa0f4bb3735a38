"""G2SD: decoder tokens first, then an expert's word, to a student with two heads that are one."""

import dataclasses

import pytest
import torch

from attar import losses, nets
from attar.artifacts import Student
from attar.artifacts.autoencoder import Autoencoder, Encoder
from attar.data.soft_labels.views import Views
from attar.errors import AttarError, RecipeError
from attar.methods.model.distillation_token import token_logits
from attar.methods.model.finetune import Tuning
from attar.methods.model.g2sd import GenericDistillation, GenericToSpecific
from attar.methods.model.mae import MaskedAutoencoding
from attar.methods.model.masked.masks import random_masking
from attar.methods.model.masked.pretraining import Pretraining
from attar.nets import ViT
from attar.nets.masked import Decoder, fresh_autoencoder
from attar.run import AdamW
from attar.spec import build
from attar.train.regression import Shape

NET, DECODER = ViT(patch=2, width=8, depth=2, heads=2), Decoder(width=8, depth=2, heads=2)
BIG, LARGE = ViT(patch=2, width=12, depth=2, heads=2), Decoder(width=16, depth=4, heads=2)
WHOLE = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
TRAIN = Pretraining(steps=4, batch=6, optimizer=AdamW(lr=0.01), warmup_epochs=0, views=WHOLE)
GENERIC = GenericDistillation(net=NET, decoder=DECODER, train=TRAIN)
G2SD = GenericToSpecific(
    generic=GENERIC,
    specific=Tuning(train=TRAIN, layer_decay=0.75),
    tuning=Tuning(train=TRAIN),
    teaching=MaskedAutoencoding(net=BIG, decoder=LARGE, train=TRAIN),
)


@pytest.fixture
def known():
    made = fresh_autoencoder(BIG, LARGE, 4, Shape(1, 8, 1), torch.Generator().manual_seed(3)).eval()
    return Autoencoder.of(Encoder(made.encoder, BIG, 1, 8), made.decoder, LARGE, {})


@pytest.fixture
def expert(data):
    module = nets.fresh(NET, data, torch.Generator().manual_seed(5)).eval()
    return Student(module, NET, 1, 8, data.classes)


def parts(data, known, open_run, method=GENERIC):
    with open_run() as run:
        model = method.fresh(run, data)
    mask = random_masking(6, 4, 0.75, torch.Generator().manual_seed(1))
    images = data.normalised(torch.arange(6))
    state = method.build(model, data, known)
    (term,) = method.terms(model, state, images, mask, images)
    return model, state, images, mask, term


def test_the_generic_error_is_smooth_and_of_normed_tokens_half_way_down_the_decoder(data, known, open_run):
    model, state, images, mask, term = parts(data, known, open_run)
    teacher = known.network
    tokens = teacher.decoder.hidden(teacher.latent(images, mask), mask, blocks=2)
    wanted = (tokens - tokens.mean(2, keepdim=True)) / (tokens.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
    gap = (state(model.decoder.hidden(model.latent(images, mask), mask)) - wanted).abs()
    expected = torch.where(gap < 2, gap.square() / 4, gap - 1)
    assert expected.shape == (6, 17, 16)
    torch.testing.assert_close(term.loss, expected.mean(), rtol=1e-4, atol=1e-6)
    *_, hidden = parts(data, known, open_run, dataclasses.replace(GENERIC, places="hidden"))
    torch.testing.assert_close(hidden.loss, expected[:, 1:][mask.hidden].mean(), rtol=1e-4, atol=1e-6)
    assert [type(layer).__name__ for layer in state.layers] == ["Linear", "GELU", "Linear"]


def test_of_the_teacher_s_decoder_only_the_first_half_runs(data, known, open_run):
    passed = []
    for number, block in enumerate(known.decoder.blocks):
        block.register_forward_hook(lambda *_, number=number: passed.append(number))
    parts(data, known, open_run)
    assert passed == [0, 1]


def test_a_teacher_without_decoder_is_refused_before_anything_runs(data, known, expert, open_run):
    bare = Encoder(known.module, BIG, 1, 8)
    for teacher in (bare, expert):
        with open_run() as run, pytest.raises(AttarError, match="no decoder"):
            G2SD(run, data=data, teacher=teacher)
        assert not run.parents


def test_the_generic_stage_gives_an_encoder_alone(data, known, open_run):
    with open_run() as run:
        made = GENERIC(run, data=data, teacher=known)
    assert type(made) is Encoder
    assert made.net == NET


def test_a_target_that_nobody_would_learn_is_refused():
    for target in ("hog", {"kind": "pixels", "standardise": True}):
        with pytest.raises(RecipeError, match=r"generic\.target.*no target; leave it out"):
            build(GenericToSpecific, {"generic.target": target})
    assert build(GenericToSpecific, {"generic.target": "pixels"}) == GenericToSpecific()


@pytest.fixture
def caught(monkeypatch, open_run):
    """Return a function that runs all but the specific stage, and gives its loss and the student it starts from."""
    seen = {}

    def tune(self, run, module, data, loss_of, *, extra=()):
        seen.update(loss=loss_of, module=module, extra=extra, decay=self.layer_decay, run=run)

    def go(method, data, **given):
        monkeypatch.setattr(Tuning, "tune", tune)
        with open_run() as run:
            seen["made"] = method(run, data=data, **given)
        return seen

    return go


def test_the_class_token_learns_the_label_and_the_other_what_the_expert_says(data, known, expert, caught):
    seen = caught(G2SD, data, teacher=known, expert=expert)
    images, labels = data.batch(torch.arange(5))
    soft = torch.nn.functional.one_hot(labels, 3).float() * 0.7 + 0.1
    (offset,) = seen["extra"]
    own, distilled = token_logits(seen["module"].head, seen["module"].embed(images), offset)
    hard = expert.module(images).argmax(1)
    expected = (losses.soft_cross_entropy(own, soft) + losses.cross_entropy(distilled, hard)) / 2
    torch.testing.assert_close(seen["loss"](seen["module"], images, soft), expected)
    assert seen["made"].net.pool == "class+distilled"
    assert seen["made"].classes == data.classes
    assert seen["decay"] == 0.75
    assert set(seen["run"].parents) == {"generic"}


def test_with_nkd_there_is_one_head_and_the_other_classes_are_normalised(data, known, expert, caught):
    method = dataclasses.replace(G2SD, form="nkd", alpha=2.0, temperature=3.0)
    seen = caught(method, data, teacher=known, expert=expert)
    images, labels = data.batch(torch.arange(5))
    soft = torch.nn.functional.one_hot(labels, 3).float()
    expected = losses.normalised_kd(seen["module"](images), expert.module(images), labels, 3.0, gamma=2.0)
    torch.testing.assert_close(seen["loss"](seen["module"], images, soft), expected)
    assert (seen["made"].net.pool, list(seen["extra"])) == ("class", [])


def test_the_student_starts_from_the_generic_stage_which_sees_the_unlabelled_images(
    data, known, expert, tiny_images, caught
):
    more = tiny_images(each=9, seed=11)
    seen = caught(G2SD, data, teacher=known, expert=expert, unlabelled=more)
    generic = seen["run"].stage("generic", GENERIC, seed=0, data=more, teacher=known)
    assert seen["run"].parents["generic"] == generic.fingerprint
    for name in ("stages.1.mlp.0.weight", "patches.project.weight"):
        assert torch.equal(seen["module"].state_dict()[name], generic.module.state_dict()[name])


def test_with_nothing_given_teacher_and_expert_are_stages_and_it_learns(data, open_run):
    with open_run() as run:
        made = G2SD(run, data=data)
    assert set(run.parents) == {"teacher", "expert", "generic"}
    assert made.module(data.normalised(torch.arange(2))).shape == (2, 3)


def test_the_paper_s_settings():
    method = GenericToSpecific()
    assert (method.generic.net.width, method.generic.decoder) == (384, Decoder(width=256, depth=4, heads=8))
    assert (method.generic.hidden, method.generic.depth, method.generic.places) == (0.75, 0.5, "all")
    assert (method.form, method.alpha, method.temperature, method.specific.layer_decay) == ("token", 1.0, 1.0, 0.75)
    assert method.generic.train.optimizer.lr == pytest.approx(1.5e-4 * 16)
    assert (method.generic.train.epochs, method.specific.train.epochs) == (300, 200)

"""Hybrid Distill: features of one teacher, relations of another, both over the tokens that are left."""

import dataclasses

import pytest
import torch

from attar import nets
from attar.artifacts import Student
from attar.artifacts.autoencoder import Autoencoder, Encoder
from attar.data.soft_labels.views import Views
from attar.errors import RecipeError
from attar.methods.model.hybrid_distill import HybridDistillation
from attar.methods.model.masked.pretraining import Pretraining
from attar.methods.model.masked.relations import Thinned, queries_keys_values, relation_divergence, relation_logits
from attar.nets import ViT
from attar.nets.masked import Decoder, encode, fresh_autoencoder, last_norm
from attar.run import AdamW
from attar.train.regression import Shape

NET, BIG = ViT(patch=2, width=8, depth=4, heads=2), ViT(patch=2, width=12, depth=8, heads=3)
WHOLE = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
TRAIN = Pretraining(steps=4, batch=6, optimizer=AdamW(lr=0.01), warmup_epochs=0, views=WHOLE)
HYBRID = HybridDistillation(net=NET, train=TRAIN, relation_heads=2, keep=1.0)


def autoencoder(net=NET, seed=0):
    made = fresh_autoencoder(
        net, Decoder(width=4, depth=0, heads=1), 4, Shape(1, 8, 1), torch.Generator().manual_seed(seed)
    )
    return Autoencoder.of(Encoder(made.encoder.eval(), net, 1, 8), made.decoder, Decoder(width=4, depth=0, heads=1), {})


@pytest.fixture
def contrastive(data):
    module = nets.fresh(BIG, data, torch.Generator().manual_seed(4)).eval()
    return Student(module, BIG, 1, 8, data.classes)


def terms(method, encoder, data, contrastive=None, known=None):
    state = method.build(data, contrastive, known)
    images = data.normalised(torch.arange(5))
    return {term.name: term for term in method.terms(encoder, state, images)}, state, images


def test_a_student_that_is_the_autoencoder_has_its_relations(data):
    same, other = autoencoder(), autoencoder(seed=1)
    method = dataclasses.replace(HYBRID, features=0.0)
    found, *_ = terms(method, same.module, data, known=autoencoder())
    assert found["relations"].loss.item() == pytest.approx(0, abs=1e-6)
    found, *_ = terms(method, other.module, data, known=same)
    assert found["relations"].loss.item() > 1e-4


def test_relations_are_the_divergences_of_query_key_and_value_value_in_a_middle_layer(data):
    method, known = dataclasses.replace(HYBRID, features=0.0), autoencoder(BIG, 3)
    student = autoencoder().module
    found, _, images = terms(method, student, data, known=known)
    expected = 0.0
    sides = []
    for module, block in ((student, 2), (known.module, 5)):
        layer = module.stages[block]
        x = layer.attention.mix(layer.attention_norm(encode(module, images, blocks=block)))[:, 1:]
        sides.append([part.unflatten(2, (2, -1)) for part in x.chunk(3, 2)])
    for a, b in ((0, 1), (2, 2)):
        mine, theirs = (
            torch.einsum("nihd,njhd->nhij", side[a], side[b]).div(side[a].shape[3] ** 0.5).softmax(3) for side in sides
        )
        expected += (theirs * (theirs / mine).log()).sum(3).mean()
    assert found["relations"].loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_features_are_compared_after_a_norm_without_scale_at_the_last_layer(data, contrastive):
    method = dataclasses.replace(HYBRID, relations=0.0)
    student = autoencoder().module
    found, state, images = terms(method, student, data, contrastive)
    told = last_norm(contrastive.module)(encode(contrastive.module, images))
    wanted = torch.nn.functional.layer_norm(told, (12,), eps=1e-6)
    mine = state["features"](last_norm(student)(encode(student, images)))
    gap = (mine - wanted).abs()
    expected = torch.where(gap < 1, gap.square() / 2, gap - 0.5).mean()
    torch.testing.assert_close(found["features"].loss, expected)
    found, state, _ = terms(dataclasses.replace(method, distance="cosine"), student, data, contrastive)
    mine = state["features"](last_norm(student)(encode(student, images)))
    cosine = 1 - torch.nn.functional.cosine_similarity(mine, wanted, dim=2)
    torch.testing.assert_close(found["features"].loss, cosine.mean())


def test_redundant_places_leave_at_three_depths_and_the_class_token_stays(data):
    encoder, images = autoencoder(ViT(patch=2, width=8, depth=6, heads=2)).module, data.normalised(torch.arange(3))
    counts = []
    for block in encoder.stages:
        block.register_forward_hook(lambda _, given, out: counts.append(out.shape[1] - 1))
    passed = Thinned(encoder, images, 0.5, {1, 5})
    assert counts == [13, 13, 10, 10, 8, 8]  # 16 · 0.5^(1/3), 16 · 0.5^(2/3), 8
    assert passed.tokens.shape == (3, 9, 8)
    assert passed.kept.shape == (3, 8)
    assert (passed.kept.diff(dim=1) > 0).all()
    assert [passed.read[number][1].shape[1] for number in (1, 5)] == [13, 8]
    whole = Thinned(encoder, images, 1.0, set())
    torch.testing.assert_close(whole.tokens, last_norm(encoder)(encode(encoder, images)))


def test_with_fewer_tokens_both_teachers_are_read_at_the_places_left(data, contrastive):
    method, known = dataclasses.replace(HYBRID, keep=0.5), autoencoder(BIG, 3)
    student = autoencoder().module
    found, state, images = terms(method, student, data, contrastive, known)
    passed = Thinned(student, images, 0.5, {2})
    told = last_norm(contrastive.module)(encode(contrastive.module, images))
    places = torch.cat([torch.zeros(5, 1, dtype=torch.int64), passed.kept + 1], 1)
    wanted = torch.nn.functional.layer_norm(
        torch.stack([t[p] for t, p in zip(told, places, strict=True)]), (12,), eps=1e-6
    )
    torch.testing.assert_close(
        found["features"].loss, torch.nn.functional.smooth_l1_loss(state["features"](passed.tokens), wanted)
    )
    tokens, kept = passed.read[2]
    mine = [x[:, 1:] for x in queries_keys_values(student.stages[2], tokens)]
    theirs = queries_keys_values(known.module.stages[5], encode(known.module, images, blocks=5))
    theirs = [torch.stack([t[1:][p] for t, p in zip(x, kept, strict=True)]) for x in theirs]
    expected = sum(
        relation_divergence(relation_logits(mine[a], mine[b], 2), relation_logits(theirs[a], theirs[b], 2))
        for a, b in ((0, 1), (2, 2))
    )
    torch.testing.assert_close(found["relations"].loss, expected)


def test_relations_are_probabilities_over_the_tokens_left_and_heads_divide_the_width():
    a, b = (torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    logits = relation_logits(a, b, 3)
    assert logits.shape == (2, 3, 5, 5)
    torch.testing.assert_close(logits[1, 2, 4, 3], (a[1, 4, 8:] @ b[1, 3, 8:]) / 2)
    torch.testing.assert_close(relation_divergence(logits + 7.0, logits), torch.tensor(0.0), atol=1e-6, rtol=0)
    with pytest.raises(RecipeError, match="relation_heads"):
        relation_logits(a, b, 5)


def test_labels_are_not_read_and_teachers_without_weight_are_not_trained(data, open_run):
    wrong = dataclasses.replace(data, labels=data.labels.roll(6))
    known = autoencoder(BIG, 3)
    method = dataclasses.replace(HYBRID, features=0.0, keep=0.7)
    made = []
    for images in (data, wrong):
        with open_run() as run:
            made.append(method(run, data=images, autoencoder=known))
        assert not run.parents
    assert made[0].fingerprint == made[1].fingerprint
    assert type(made[0]) is Encoder


def test_it_may_start_from_an_autoencoder_of_its_own_shape(data, open_run):
    method = dataclasses.replace(HYBRID, start="teacher")
    known = autoencoder(seed=9)
    with open_run() as run:
        made = method.fresh(run, data, known)
    assert torch.equal(made.stages[0].mlp[0].weight, known.module.stages[0].mlp[0].weight)
    with open_run() as run, pytest.raises(RecipeError, match="one net"):
        method.fresh(run, data, autoencoder(BIG))

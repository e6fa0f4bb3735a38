"""Transformers on a part of the patches: hidden places do not leak, order is undone, and trunks are carried over."""

import pytest
import torch

from attar import nets
from attar.errors import AttarError
from attar.methods.model.distillation_token import token_logits
from attar.nets import Mixer, ViT
from attar.nets.masked import (
    Decoder,
    Masking,
    continued,
    encode,
    fresh_autoencoder,
    last_norm,
    sine_cosine,
    transformer,
)
from attar.train.regression import Shape

NET = ViT(patch=2, width=8, depth=3, heads=2)
SHAPE = Shape(1, 8, 1)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def model():
    return fresh_autoencoder(NET, Decoder(width=12, depth=2, heads=3), 4, SHAPE, torch.Generator().manual_seed(0))


@pytest.fixture
def images():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def shuffled(seed=2, keep=5):
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return Masking.of(order, keep)


def test_kept_places_come_back_to_where_they_were():
    masking = shuffled()
    places = torch.arange(16.0).expand(3, 16)[:, :, None]
    kept = masking.take(places)
    whole = torch.cat([kept, torch.full((3, 11, 1), -1.0)], 1).squeeze(2).gather(1, masking.restore)
    expected = places.squeeze(2).masked_fill(masking.hidden, -1.0)
    assert torch.equal(whole, expected)
    assert masking.hidden.sum(1).tolist() == [11, 11, 11]


def test_with_every_place_kept_in_order_the_encoder_is_the_network(model, images):
    masking = Masking.of(torch.arange(16).expand(3, 16), 16)
    model.encoder.eval()
    tokens = last_norm(model.encoder)(encode(model.encoder, images, masking))
    torch.testing.assert_close(tokens[:, 0], model.encoder.embed(images))


def test_the_order_of_the_kept_places_only_permutes_tokens(model, images):
    masking = shuffled()
    turned = Masking(masking.kept.flip(1), Masking.of(masking.kept.flip(1), 5).restore)
    a, b = (encode(model.encoder, images, one) for one in (masking, turned))
    torch.testing.assert_close(a[:, 1:], b[:, 1:].flip(1))
    torch.testing.assert_close(a[:, 0], b[:, 0])


def test_nothing_of_a_hidden_place_reaches_a_guess(model, images):
    masking = shuffled()
    x = images.requires_grad_()
    model(x, masking)[0].sum().backward()
    patches = x.grad[0, 0].unfold(0, 2, 2).unfold(1, 2, 2).abs().sum((2, 3)).flatten()
    assert patches[masking.hidden[0]].eq(0).all()
    assert patches[~masking.hidden[0]].gt(0).all()


def test_guesses_stand_at_their_places_whatever_the_order(model, images):
    masking = shuffled()
    kept = masking.kept.sort(1).values
    hidden = torch.stack([torch.arange(16)[row] for row in masking.hidden])
    ordered = Masking.of(torch.cat([kept, hidden], 1), 5)
    torch.testing.assert_close(model(images, masking), model(images, ordered))


def test_a_part_of_the_blocks_is_what_stands_inside_the_whole(model, images):
    masking = shuffled()
    two = encode(model.encoder, images, masking, blocks=2)
    torch.testing.assert_close(model.encoder.stages[2](two), encode(model.encoder, images, masking))
    latent = model.latent(images, masking)
    one = model.decoder.hidden(latent, masking, blocks=1)
    torch.testing.assert_close(model.decoder.blocks[1](one), model.decoder.hidden(latent, masking))


def test_positions_are_the_waves_of_row_and_column():
    waves = sine_cosine(3, 10, leading=1)[0]
    assert waves.shape == (10, 10)
    assert waves[0].eq(0).all()
    place = waves[1 + 2 * 3 + 1]  # row 2, column 1
    frequency = torch.tensor([1.0, 0.01])
    expected = torch.cat([frequency.sin(), frequency.cos(), (2 * frequency).sin(), (2 * frequency).cos()])
    torch.testing.assert_close(place[:8], expected)
    assert waves[:, 8:].eq(0).all()


def test_the_encoder_keeps_its_positions_while_it_is_pre_trained(model):
    positions = model.encoder.patches.positions
    assert not positions.requires_grad
    torch.testing.assert_close(positions.data, sine_cosine(4, 8, 1))


def test_a_trunk_is_carried_to_a_network_with_a_distillation_token(model, images):
    rng = torch.Generator().manual_seed(3)
    both = continued(
        model.encoder, ViT(patch=2, width=8, depth=3, heads=2, pool="class+distilled"), Shape(1, 8, 4), rng
    )
    old, new = model.encoder.patches, both.patches
    assert (new.leading, both.head.in_features, both.head.out_features) == (2, 16, 4)
    torch.testing.assert_close(new(images)[:, 2:], old(images)[:, 1:])
    torch.testing.assert_close(new(images)[:, :1], old(images)[:, :1])
    same = continued(model.encoder, NET, Shape(1, 8, 4), rng)
    torch.testing.assert_close(same.embed(images), model.encoder.embed(images))


def test_two_tokens_read_by_one_head_are_two_heads_whose_mean_is_the_network(images):
    net = ViT(patch=2, width=8, depth=1, heads=2, pool="class+distilled")
    module = nets.fresh(net, Shape(1, 8, 3), torch.Generator().manual_seed(0))
    seen, offset = module.embed(images), torch.tensor([0.5, 0.0, -1.0])
    own, distilled = token_logits(module.head, seen, offset)
    torch.testing.assert_close((own + distilled) / 2, module(images))
    torch.testing.assert_close(own, 2 * seen[:, :8] @ module.head.weight[:, :8].T + module.head.bias + offset)
    torch.testing.assert_close(distilled, 2 * seen[:, 8:] @ module.head.weight[:, 8:].T + module.head.bias - offset)


def test_networks_that_mix_all_places_are_refused():
    mixer = nets.fresh(Mixer(patch=2, width=8, depth=1), SHAPE, torch.Generator().manual_seed(0))
    with pytest.raises(AttarError, match="net=vit"):
        transformer(mixer)

"""Dual encoders: transformers' arithmetic, texts that end where they end, and gates that compute what pruning would."""

import pytest
import torch

from attar.data.tokenizers import WordTokenizer
from attar.errors import RecipeError
from attar.nets.dual import BlockGates, TowerGates, fresh_dual, normed
from attar.nets.dual_specs import DualNet, ImageTower, TextTower
from attar.nets.dual_transformers import from_clip, to_clip
from attar.train.regression import Shape

NET = DualNet(
    image=ImageTower(patch=4, width=8, depth=2, heads=2, head_width=4),
    text=TextTower(width=6, depth=2, heads=3, head_width=2, context=7),
    dimensions=5,
)
TOKENIZER = WordTokenizer.of(["a red bag", "two blue shoes"])
SHAPE = Shape(3, 8, 1)
IDS = {"vocabulary": TOKENIZER.vocabulary, "end": TOKENIZER.end}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def encoder():
    made = fresh_dual(NET, SHAPE, torch.Generator().manual_seed(0), **IDS).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("end", [5, 2])
def test_a_clip_model_of_transformers_computes_the_same(activation, end, images):
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 30, "max_position_embeddings": 9, "eos_token_id": end}
    text |= {"bos_token_id": None, "pad_token_id": None, "hidden_act": activation}
    image = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 3}
    image |= {"image_size": 8, "patch_size": 4, "hidden_act": activation}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=6)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
        model.logit_scale.fill_(2.0)
    made, spec = from_clip(model, 3, 8)
    ids = torch.randint(6, 29, (4, 9), generator=torch.Generator().manual_seed(0))
    ids[:, 6] = ids[1, 3] = made.end
    assert made.end == (5 if end == 5 else 29)  # early checkpoints say 2 and mean the largest id
    told = model(pixel_values=images, input_ids=ids)
    torch.testing.assert_close(made.images(images), told.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.texts(ids), told.text_embeds, rtol=1e-4, atol=1e-5)
    assert made.scale.item() == pytest.approx(torch.tensor(2.0).exp().item())
    back = to_clip(made, spec)
    torch.testing.assert_close(back(pixel_values=images, input_ids=ids).logits_per_image, told.logits_per_image)


def test_only_even_towers_have_a_form_in_transformers(encoder):
    uneven = DualNet(image=ImageTower(uneven=((1, 4), (2, 4))), text=NET.text)
    with pytest.raises(RecipeError, match="this one was pruned"):
        to_clip(encoder, uneven)


def test_vectors_have_length_1_and_a_text_is_read_at_its_end(encoder, images):
    ids = TOKENIZER.ids(["a red bag", "two blue shoes"], 7)
    vectors = encoder.texts(ids)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(encoder.images(images).norm(dim=1), torch.ones(4))
    noisy = ids.clone()
    noisy[:, 5:] = 40  # behind the end
    torch.testing.assert_close(encoder.texts(noisy), vectors)
    torch.testing.assert_close(encoder.texts(ids[:1]), vectors[:1])
    other = ids.clone()
    other[:, 1] = 40
    assert (encoder.texts(other) - vectors).abs().max() > 1e-2


def test_no_image_and_no_text_are_read_as_well(encoder, images):
    assert encoder.images(images[:0]).shape == (0, 5)  # the share of a process where rows are few
    assert encoder.texts(TOKENIZER.ids([], 7)).shape == (0, 5)


def test_grey_and_smaller_images_are_shown_as_the_tower_sees_them():
    net = DualNet(image=ImageTower(**{**vars(NET.image), "size": 16, "channels": 3}), text=NET.text, dimensions=5)
    made = fresh_dual(net, Shape(1, 8, 1), torch.Generator().manual_seed(0), **IDS)
    grey = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    large = torch.nn.functional.interpolate(grey, size=(16, 16), mode="bilinear")
    torch.testing.assert_close(made.images(grey), made.image(large.expand(-1, 3, -1, -1)))
    made.get_buffer("contrast").fill_(2.0)
    made.get_buffer("shift").fill_(0.5)
    torch.testing.assert_close(made.images(grey), made.image(2 * large.expand(-1, 3, -1, -1) + 0.5))


def test_the_same_generator_draws_the_same_towers_and_the_scale_is_bounded():
    drawn = [fresh_dual(NET, SHAPE, torch.Generator().manual_seed(seed), **IDS) for seed in (0, 0, 1)]
    same, again, other = (made.text.tokens for made in drawn)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert drawn[0].scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        drawn[0].log_scale.fill_(9.0)
    drawn[0].constrain()
    assert drawn[0].scale.item() == pytest.approx(100)
    assert torch.autograd.grad(drawn[0].scale, drawn[0].log_scale)[0].item() == pytest.approx(100)  # it may fall again


def gates_of(tower, blocks, width):
    return TowerGates(
        torch.tensor(width),
        [BlockGates(*(torch.tensor(part) for part in block)) for block in blocks],
    )


def test_open_gates_change_nothing_and_a_closed_part_is_not_there(encoder, images):
    whole = [(1.0, [1.0, 1.0], 1.0, [1.0] * 32)] * 2
    plain = encoder.images(images)
    torch.testing.assert_close(encoder.images(images, gates_of(encoder.image, whole, [1.0] * 8)), plain)
    closed = [(0.0, [1.0, 1.0], 1.0, [1.0] * 32), (1.0, [1.0, 1.0], 0.0, [1.0] * 32)]
    gated = encoder.images(images, gates_of(encoder.image, closed, [1.0] * 8))
    with torch.no_grad():
        for layer in (encoder.image.blocks[0].project, encoder.image.blocks[1].contract):
            layer.weight.zero_()
            layer.bias.zero_()
    torch.testing.assert_close(gated, encoder.images(images))
    assert (gated - plain).abs().max() > 1e-3


def test_a_norm_with_closed_channels_is_one_without_them():
    norm = torch.nn.LayerNorm(5)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 6.0))
        norm.bias.copy_(torch.arange(5.0))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    width, kept = torch.tensor([1.0, 0.0, 0.3, 1.0, 0.0]), torch.tensor([0, 2, 3])
    out = normed(norm, x, width)
    expected = torch.nn.functional.layer_norm(x[:, kept], (3,), norm.weight[kept], norm.bias[kept])
    torch.testing.assert_close(out[:, kept], expected)
    assert not out[:, [1, 4]].any()


@pytest.mark.parametrize("fields", [{"uneven": ((-1, 4),)}, {"depth": 300}, {"context": 2}])
def test_towers_of_no_shape_are_refused(fields):
    with pytest.raises(ValueError, match="validation error"):
        TextTower(**fields)
    with pytest.raises(RecipeError, match="needs channels, pixels and tokens"):
        NET.build(0, 8, 5)

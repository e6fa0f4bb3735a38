"""Transformers and their kin are the papers' networks at the papers' sizes, and keep the contract at small ones."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import AttarError, RecipeError
from attar.metrics.work import WorkMeter
from attar.nets.tokens import Attention, Patches
from attar.nets.windows import Merge, WindowAttention
from attar.spec import build, spec

SMALL = {
    "vit": nets.ViT(width=8, depth=2, heads=2),
    "vit-mean": nets.ViT(width=8, depth=2, heads=2, pool="mean"),
    "mixer": nets.Mixer(width=8, depth=2),
    "swin": nets.Swin(width=4, depths=(2, 2), heads=2),
    "convnext": nets.ConvNeXt(width=4, depths=(1, 2), scale=0.1),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(network, size=16, channels=3):
    like = SimpleNamespace(channels=channels, size=size, num_classes=5)
    return nets.fresh(network, like, generator())


def images(n=2, size=16, channels=3):
    return torch.randn(n, channels, size, size, generator=generator(1))


@pytest.mark.parametrize(
    ("network", "parameters"),
    [  # ImageNet's, as published: DeiT-Ti, ViT-S, Mixer-S, Swin-T, ConvNeXt-T
        (nets.ViT(patch=16), 5_717_416),
        (nets.ViT(patch=16, width=384, heads=6), 22_050_664),
        (nets.Mixer(patch=16, width=512), 18_528_264),
        (nets.Swin(patch=4, depths=(2, 2, 6, 2), window=7), 28_288_354),
        (nets.ConvNeXt(patch=4, width=96, depths=(3, 3, 9, 3)), 28_589_128),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_parameter_counts_are_the_papers(network, parameters):
    with torch.device("meta"):
        assert nets.count_parameters(network.build(3, 224, 1000)) == parameters


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [4, 14, 16, 21, 28])
def test_every_network_keeps_the_contract_at_every_size(name, size):
    module = made(SMALL[name], size, 1)
    x = images(3, size, 1)
    maps, embedding = module.features(x)
    logits = module(x)
    torch.testing.assert_close(module.embed(x), embedding)
    torch.testing.assert_close(module.head(embedding), logits)
    assert embedding.shape == (3, module.num_features)
    assert len(maps) == len(module.stages)
    assert all(m.dim() == 4 and m.shape[2] == m.shape[3] for m in maps)
    assert module.activations == [None] * len(maps)
    before, _ = module.before_activation(x)
    assert all(torch.equal(a, b) for a, b in zip(before, maps, strict=True))
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_from_the_generator_alone_and_gradients_have_gradients(name):
    module, twin = made(SMALL[name]), made(SMALL[name])
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), twin.state_dict().values(), strict=True))
    for parameter in twin.parameters():
        parameter.data.fill_(7)
    nets.reset(twin, generator())
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))
    loss = nn.functional.cross_entropy(module(images()), torch.tensor([0, 1]))
    gradients = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
    sum(g.square().sum() for g in gradients).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def perturbed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(3)) * 0.2)
    return model.eval()


def take(layer, other):
    layer.load_state_dict(other.state_dict())


@torch.no_grad()
def take_attention(ours, theirs):
    parts = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    ours.mix.weight.copy_(torch.cat([part.weight for part in parts]))
    ours.mix.bias.copy_(torch.cat([part.bias for part in parts]))
    take(ours.project, theirs.o_proj)


@torch.no_grad()
def test_a_vit_gives_what_transformers_gives_with_the_same_weights():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
                       patch_size=4, num_labels=5, layer_norm_eps=1e-6)  # fmt: skip
    theirs, ours = perturbed(ViTForImageClassification(config)), made(SMALL["vit"])
    ours.patches.learned.copy_(theirs.vit.embeddings.cls_token)
    ours.patches.positions.copy_(theirs.vit.embeddings.position_embeddings)
    take(ours.patches.project, theirs.vit.embeddings.patch_embeddings.projection)
    for block, other in zip(ours.stages, theirs.vit.layers, strict=True):
        take(block.attention_norm, other.layernorm_before)
        take_attention(block.attention, other.attention)
        take(block.mlp_norm, other.layernorm_after)
        take(block.mlp[0], other.mlp.fc1)
        take(block.mlp[2], other.mlp.fc2)
    take(ours.collapse[0], theirs.vit.layernorm)
    take(ours.head, theirs.classifier)
    told = theirs(images(), output_hidden_states=True)
    torch.testing.assert_close(ours(images()), told.logits, rtol=1e-4, atol=1e-4)
    expected = told.hidden_states[1][:, 1:].transpose(1, 2).reshape(2, 8, 4, 4)
    torch.testing.assert_close(ours.features(images())[0][0], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("size", "window"), [(16, 4), (32, 4), (16, 2)])
def test_a_swin_gives_what_transformers_gives_with_the_same_weights(size, window):
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(embed_dim=4, depths=[2, 2], num_heads=[2, 4], window_size=window, image_size=size, patch_size=2,
                        num_labels=5, drop_path_rate=0.0)  # fmt: skip
    theirs = perturbed(SwinForImageClassification(config))
    ours = made(nets.Swin(width=4, depths=(2, 2), heads=2, window=window), size)
    take(ours.stages[0][1], theirs.swin.embeddings.patch_embeddings.projection)
    take(ours.stages[0][2], theirs.swin.embeddings.norm)
    take(ours.stages[1][0].reduce, theirs.swin.encoder.layers[0].downsample.reduction)
    take(ours.stages[1][0].norm, theirs.swin.encoder.layers[0].downsample.norm)
    others = [block for layer in theirs.swin.encoder.layers for block in layer.blocks]
    for block, other in zip([*ours.stages[0][3:], *ours.stages[1][1:]], others, strict=True):
        take(block.attention_norm, other.layernorm_before)
        take_attention(block.attention.attention, other.attention)
        table = other.attention.relative_position_bias.relative_position_bias_table
        block.attention.offsets.copy_(table)
        take(block.mlp_norm, other.layernorm_after)
        take(block.mlp[0], other.mlp.fc1)
        take(block.mlp[2], other.mlp.fc2)
    take(ours.collapse[0], theirs.swin.layernorm)
    take(ours.head, theirs.classifier)
    torch.testing.assert_close(ours(images(size=size)), theirs(images(size=size)).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_convnext_gives_what_transformers_gives_with_the_same_weights():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 2], num_stages=2, patch_size=2, num_labels=5,
                            layer_norm_eps=1e-6)  # fmt: skip
    theirs, ours = perturbed(ConvNextForImageClassification(config)), made(SMALL["convnext"])
    take(ours.stages[0][1], theirs.convnext.embeddings.patch_embeddings)
    take(ours.stages[0][2], theirs.convnext.embeddings.layernorm)
    first, second = theirs.convnext.encoder.stages
    take(ours.stages[1][0], second.downsampling_layer[0])
    take(ours.stages[1][1], second.downsampling_layer[1])
    for block, other in zip([ours.stages[0][3], *ours.stages[1][2:]], [*first.layers, *second.layers], strict=True):
        take(block.convolve, other.dwconv)
        take(block.norm, other.layernorm)
        take(block.mlp[0], other.pwconv1)
        take(block.mlp[2], other.pwconv2)
        block.scale.copy_(other.layer_scale_parameter)
    take(ours.collapse[2], theirs.convnext.layernorm)
    take(ours.head, theirs.classifier)
    torch.testing.assert_close(ours(images()), theirs(images()).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mixer_blocks_mix_places_then_channels():
    block = made(SMALL["mixer"]).stages[0]
    x = torch.randn(2, 16, 8, generator=generator(2))
    y = x + torch.stack([block.place_mlp(block.place_norm(x)[:, :, c]) for c in range(8)], 2)
    expected = y + torch.stack([block.channel_mlp(block.channel_norm(y)[:, p]) for p in range(16)], 1)
    torch.testing.assert_close(block(x), expected)


@torch.no_grad()
def test_attention_is_torchs_and_a_hook_reads_its_weights():
    attention = Attention(12, 3)
    x = torch.randn(2, 5, 12, generator=generator(2))
    seen = []
    attention.softmax.register_forward_hook(lambda _, given, out: seen.append(out))
    queries, keys, values = attention.mix(x).reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
    expected = attention.project(mixed.transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x), expected)
    assert seen[0].shape == (2, 3, 5, 5)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 3, 5))


def neighbours(attention, side):
    """Which places each place of a map reads, `[side · side, side · side]`."""
    x = torch.randn(1, side, side, attention.attention.mix.in_features, generator=generator(4), requires_grad=True)
    rows = []
    for place in range(side * side):
        out = attention(x).flatten(0, 2)[place].sum()
        rows.append(torch.autograd.grad(out, x)[0].flatten(0, 2).abs().sum(-1) > 0)
    return torch.stack(rows)


@pytest.mark.parametrize(("side", "window", "shift"), [(4, 2, 0), (4, 2, 1), (5, 3, 1), (5, 2, 1), (3, 3, 0)])
def test_places_see_those_of_their_window_and_none_around_the_border(side, window, shift):
    attention = WindowAttention(4, 2, window=window, shift=shift)
    group = [(place - shift) // window for place in range(side)]  # windows begin `shift` places later
    expected = torch.tensor(
        [[(group[i // side], group[i % side]) == (group[j // side], group[j % side]) for j in range(side**2)]
         for i in range(side**2)]
    )  # fmt: skip
    assert torch.equal(neighbours(attention, side), expected)


@torch.no_grad()
def test_padding_of_a_map_changes_nothing_that_a_window_tells():
    attention = WindowAttention(4, 2, window=4, shift=0)
    x = torch.randn(1, 6, 6, 4, generator=generator(5))
    nn.init.zeros_(attention.offsets)
    corner = attention.attention(x[:, 4:, 4:].flatten(1, 2))
    torch.testing.assert_close(attention(x)[:, 4:, 4:].flatten(1, 2), corner)


@torch.no_grad()
def test_a_bias_belongs_to_the_offset_between_two_places():
    attention = WindowAttention(4, 2, window=3, shift=0)
    bias = attention._bias(3, 3)[0].reshape(2, 3, 3, 3, 3)
    torch.testing.assert_close(bias[:, 0, 0, 1, 1], bias[:, 1, 1, 2, 2])
    torch.testing.assert_close(bias[:, 0, 1, 2, 0], bias[:, 0, 2, 2, 1])
    assert bias.flatten(1).unique(dim=1).shape[1] == 25  # (2 · 3 − 1)² offsets


def test_merging_reads_squares():
    merge = Merge(2)
    x = torch.randn(1, 2, 4, 4, generator=generator(6), requires_grad=True)
    read = torch.autograd.grad(merge(x)[0, :, 1, 0].square().sum(), x)[0].abs().sum((0, 1)) > 0
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[2:, :2] = True
    assert torch.equal(read, expected)


def test_images_are_padded_where_patches_do_not_fit():
    assert Patches(1, 28, 4, 8).side == 7
    assert Patches(1, 28, 8, 8).side == 4  # as if of 32 px
    patches = Patches(1, 5, 2, 8)
    assert patches.side == 3
    padded = patches.pad(torch.ones(1, 1, 5, 5))[0, 0]
    assert padded.shape == (6, 6)
    assert padded[:5, :5].all()
    assert not padded[5].any()
    assert not padded[:, 5].any()


@torch.no_grad()
def test_maps_are_the_places_row_by_row_without_the_class_token():
    module = made(SMALL["vit"])
    for parameter in (module.patches.positions, module.patches.learned):
        nn.init.zeros_(parameter)
    tokens = module.patches(images())
    assert tokens.shape == (2, 17, 8)
    torch.testing.assert_close(module.patches.map_of(tokens), module.patches.project(images()))


def test_every_block_is_reached_by_a_path():
    module = made(SMALL["vit"])
    seen = {}
    for path in ("stages.0", "stages.1.attention", "stages.1.mlp.1"):
        module.get_submodule(path).register_forward_hook(
            lambda _, given, out, path=path: seen.update({path: out.shape})
        )
    module(images())
    assert seen == {"stages.0": (2, 17, 8), "stages.1.attention": (2, 17, 8), "stages.1.mlp.1": (2, 17, 32)}


@pytest.mark.parametrize(
    "network", [SMALL["vit"], nets.Swin(width=4, depths=(2,), heads=2)], ids=lambda network: network.kind
)
def test_an_exported_network_takes_any_number_of_images(network):
    module = made(network, 10).eval()
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(module, (images(2, 10),), dynamic_shapes={"x": {0: batch}})
    torch.testing.assert_close(exported.module()(images(5, 10)), module(images(5, 10)))


def test_rows_are_counted_however_a_network_is_entered():
    module = made(SMALL["vit"])
    meter = WorkMeter()
    meter.watch("net", module)
    with meter:
        module(images()).sum().backward()
        module.embed(images(3))
        module.features(images(4))
    assert meter.amounts() == {"forward": 9, "backward": 2, "updates": 0, "teacher_calls": 0}


@spec
class Recipe:
    net: nets.Net = nets.ConvNet()


def test_mistakes_are_explained():
    assert build(Recipe, {"net": "swin", "net.depths": [1, 1]}).net == nets.Swin(depths=(1, 1))
    with pytest.raises(RecipeError, match="multiple of heads"):
        build(Recipe, {"net": "vit", "net.width": 100})
    with pytest.raises(RecipeError, match="multiple of heads"):
        build(Recipe, {"net": "swin", "net.width": 100})
    with pytest.raises(RecipeError, match="at least one block"):
        build(Recipe, {"net": "convnext", "net.depths": [2, 0]})
    for network in (nets.ViT(), nets.Mixer(), nets.Swin(depths=(1, 1)), nets.ConvNeXt(depths=(1, 1))):
        with pytest.raises(AttarError, match="below 4×4"):
            network.build(1, 3, 10)

"""Adapters: a network begins as the frozen one, which they can be switched off to, bit for bit, and never change."""

import copy
import math

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import RecipeError
from attar.nets.adapter_specs import GuidanceAdapters, LoRA
from attar.nets.adapters import layers_of
from attar.nets.denoiser_specs import DiT, Extras, Form, PointMLP, ResidualMLP, UNet
from attar.nets.denoisers import told
from attar.nets.guidance_adapters import GuidanceFeatures, positions
from attar.spec import build

FORM = Form(shape=(1, 8, 8), labels=3)
NETS = {
    "dit": DiT(width=16, depth=2, heads=2),
    "unet": UNet(width=8),
    "residual": ResidualMLP(width=16, blocks=2),
    "points": PointMLP(width=16, depth=2),
}
ADAPTERS = {
    "lora": LoRA(rank=2, layers="all"),
    "offset": GuidanceAdapters(hidden=8),
    "attention": GuidanceAdapters(hidden=8, form="attention"),
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def network(spec, extras=None):
    """A network none of whose weights is zero."""
    made = spec.build(FORM, extras or Extras())
    nets.reset(made, rng())
    return noisy(made)


def noisy(module):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng(parameter.numel())), alpha=0.2)
    return module


def attach(adapter, net, **told_of):
    return adapter.attach(net, FORM, rng(1), **{"longest": 1.0, "fresh": frozenset(), **told_of})


def batch(n=4):
    x, label = torch.randn(n, 1, 8, 8, generator=rng(2)), torch.rand(n, generator=rng(3))
    return x, label, torch.arange(n) % 4, torch.linspace(0, 3, n)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("name", NETS)
def test_a_network_begins_as_the_frozen_one_and_can_be_it_again(name, kind):
    net = network(NETS[name])
    x, label, condition, w = batch()
    guided = told(condition, guidance=w) if kind != "lora" else condition
    with torch.no_grad():
        before = net(x, label, condition)
        adapted = attach(ADAPTERS[kind], net)
        assert torch.equal(adapted(x, label, guided), before)
        trained = noisy(adapted)(x, label, guided)
        assert (trained - before).abs().max() > 1e-3
        with adapted.off():
            assert torch.equal(adapted(x, label, guided), before)
        assert torch.equal(adapted(x, label, guided), trained)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_what_is_trained_is_what_is_stored_and_copies_share_the_rest(kind):
    net = network(NETS["dit"])
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    frozen = {id(tensor) for tensor in net.parameters()}
    adapted = attach(ADAPTERS[kind], net)
    adapted.requires_grad_(True)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    buffers = {name for name, _ in adapted.named_buffers()}
    assert adapted.state_dict().keys() == trained | buffers
    assert not {id(p) for p in adapted.parameters() if p.requires_grad} & frozen
    twin = noisy(copy.deepcopy(adapted))
    assert {id(p) for p in twin.parameters()} & {id(p) for p in adapted.parameters()} == frozen
    assert not any(torch.equal(twin.state_dict()[n], adapted.state_dict()[n]) for n in trained)
    x, label, condition, w = batch()
    guided = told(condition, guidance=w)
    wanted = twin(x, label, guided if kind != "lora" else condition)
    adapted.load_state_dict(twin.state_dict())
    assert torch.equal(adapted(x, label, guided if kind != "lora" else condition), wanted)
    after = {id(tensor): tensor for tensor in adapted.parameters()}
    assert all(any(torch.equal(tensor, other) for other in after.values()) for tensor in kept.values())


def test_low_rank_updates_are_alpha_over_rank_times_b_a():
    net = network(NETS["points"])
    kept = copy.deepcopy(net)
    adapted = noisy(attach(LoRA(rank=2, alpha=6, layers="all"), net))
    state = adapted.state_dict()
    by_hand = copy.deepcopy(kept)
    with torch.no_grad():
        for name in layers_of(kept, "all"):
            a, b = (state[f"network.{name}.lora_{part}.default.weight"] for part in "AB")
            assert a.shape[0] == b.shape[1] == 2
            by_hand.get_submodule(name).weight += 3.0 * b @ a
    x, label, condition, _ = batch()
    torch.testing.assert_close(adapted(x, label, condition), by_hand(x, label, condition))
    merged = adapted.merged()
    assert merged.state_dict().keys() == kept.state_dict().keys()
    torch.testing.assert_close(merged(x, label, condition), by_hand(x, label, condition))
    with adapted.off():
        assert torch.equal(adapted(x, label, condition), kept(x, label, condition))  # merging changed a copy


def test_attention_alone_is_adapted_unless_all_is_asked_for():
    net = NETS["dit"].build(FORM, Extras())
    attention = [f"blocks.{block}.attention.{part}" for block in (0, 1) for part in ("inside", "outside")]
    assert layers_of(net, "attention") == attention
    assert set(attention) < set(layers_of(net, "all"))
    with pytest.raises(RecipeError, match=r"lora\.layers=all"):
        layers_of(NETS["points"].build(FORM, Extras()), "attention")


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_of_none_is_refused(rank):
    with pytest.raises(RecipeError, match="nothing to learn"):
        build(LoRA, {"rank": rank})


def test_inputs_beside_are_trained_whole_and_off_with_the_rest():
    net = network(NETS["dit"], Extras(guidance=True))
    plain = network(NETS["dit"])
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("guidance")})
    fresh = frozenset(name for name, _ in net.named_parameters() if name.startswith("guidance"))
    adapted = attach(LoRA(rank=1), net, fresh=fresh)
    assert {f"network.{name}" for name in fresh} < adapted.state_dict().keys()
    x, label, condition, w = batch()
    guided = told(condition, guidance=w)
    assert not torch.allclose(adapted(x, label, guided), plain(x, label, condition))
    with adapted.off():
        assert torch.equal(adapted(x, label, guided), plain(x, label, condition))


def test_forward_derivatives_pass_through_low_rank_updates():
    adapted = noisy(attach(LoRA(rank=2), network(NETS["dit"]))).double()
    x, label, condition, _ = batch()
    x, direction = x.double(), torch.randn(4, 1, 8, 8, generator=rng(9)).double()
    label = label.double()
    _, slope = torch.autograd.functional.jvp(lambda x: adapted(x, label, condition), x, direction)
    ahead, behind = (adapted(x + step * direction, label, condition) for step in (1e-5, -1e-5))
    torch.testing.assert_close(slope, (ahead - behind) / 2e-5, atol=1e-6, rtol=1e-5)


class TestGuidanceAdapters:
    """What adapters make of guidance, time and condition."""

    def adapted(self, form="offset", name="dit"):
        return noisy(attach(GuidanceAdapters(hidden=8, form=form), network(NETS[name])))

    @pytest.mark.parametrize("form", ["offset", "attention"])
    @pytest.mark.parametrize("which", ["guidance", "time", "condition"])
    def test_each_of_them_counts(self, form, which):
        adapted = self.adapted(form)
        beside = adapted.network.blocks[0].attention.adapter
        context, tokens = adapted.context, torch.randn(4, 16, 16, generator=rng())
        context.guidance, context.label, context.condition = torch.ones(4), torch.ones(4), torch.zeros(4).long()
        before = beside.beside(tokens, context)
        setattr(
            context, {"time": "label"}.get(which, which), torch.tensor([2, 2, 2, 2]) / (1 if which != "time" else 4)
        )
        if which == "condition":
            context.condition = torch.full((4,), 3)
        assert (beside.beside(tokens, context) - before).abs().max() > 1e-4

    def test_an_offset_is_one_vector_for_all_tokens_and_attention_is_not(self):
        tokens = torch.randn(4, 16, 16, generator=rng())
        for form, places in (("offset", 1), ("attention", 16)):
            adapted = self.adapted(form)
            context = adapted.context
            context.guidance, context.label, context.condition = torch.ones(4), torch.ones(4), torch.zeros(4).long()
            added = adapted.network.blocks[0].attention.adapter.beside(tokens, context)
            assert added.shape == (4, places, 16)
        assert (added[:, 1:] - added[:, :1]).abs().max() > 1e-4

    def test_it_is_added_to_what_the_layer_gives(self):
        adapted = self.adapted()
        layer = adapted.network.blocks[0].attention
        x, context = torch.randn(4, 16, 16, generator=rng()), adapted.context
        context.guidance, context.label, context.condition = torch.ones(4), torch.ones(4), torch.zeros(4).long()
        torch.testing.assert_close(layer(x), layer.inner(x) + layer.adapter.beside(x, context))

    def test_guidance_must_be_told(self):
        x, label, condition, _ = batch()
        with pytest.raises(RecipeError, match="told guidance"):
            self.adapted()(x, label, condition)

    def test_labels_are_scaled_by_the_longest(self):
        x, label, condition, w = batch()
        one = self.adapted()
        other = attach(GuidanceAdapters(hidden=8), network(NETS["dit"]), longest=1000.0)
        other.load_state_dict(one.state_dict())
        seen = []
        adapter = other.network.blocks[0].attention.adapter
        adapter.time.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, 0]))
        other(x, 1000 * label, told(condition, guidance=w))
        torch.testing.assert_close(seen[0], label)

    def test_features_of_guidance_are_written_out_and_smooth(self):
        made = GuidanceFeatures(8, 1.0)
        nets.reset(made, rng())
        w = torch.tensor([0.0, 1.5])
        waves = torch.cos(2 * math.pi * (w[:, None] * made.f + made.phase))
        torch.testing.assert_close(made(w), made.layers(waves))
        assert isinstance(made.layers[-1], nn.LayerNorm)
        near = (made(torch.tensor([1.0])) - made(torch.tensor([1.01]))).abs().max()
        wild = GuidanceFeatures(8, 1000.0)
        wild.load_state_dict(made.state_dict())
        assert near < 0.2 * (wild(torch.tensor([1.0])) - wild(torch.tensor([1.01]))).abs().max()

    def test_positions_tell_the_sequence_apart(self):
        made = positions(3, torch.zeros(1, 4))
        torch.testing.assert_close(made[0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
        expected = [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]
        torch.testing.assert_close(made[2], torch.tensor(expected))

    def test_a_network_without_attention_or_known_layers_is_refused(self):
        with pytest.raises(RecipeError, match="no attention"):
            attach(GuidanceAdapters(), nn.Linear(2, 2))

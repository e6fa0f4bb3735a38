"""The end of a network by itself: it gives what the whole network gives, for every family, and passes gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import RecipeError
from attar.nets import MLP, ConvNet, ConvNeXt, Mixer, Swin, TransformersNet, ViT
from attar.train.tail import Tail, cut
from attar.train.taps import read

TOKENS = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4, "intermediate_size": 16}
HF_VIT = TransformersNet(config={"model_type": "vit", **TOKENS})
HF_SWIN = TransformersNet(
    config={
        "model_type": "swin",
        "embed_dim": 4,
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 2],
        "window_size": 2,
        "patch_size": 2,
    }
)
VIT = ViT(patch=4, width=8, depth=3, heads=2, pool="mean")
FAMILIES = {
    "vit": (VIT, (8, 4, 4), (8, 4, 4)),
    "vit with a class token": (ViT(patch=4, width=8, depth=3, heads=2), (8, 4, 4), (8, 4, 4)),
    "mixer": (Mixer(patch=4, width=8, depth=3), (8, 4, 4), (8, 4, 4)),
    "swin": (Swin(patch=2, width=4, depths=(1, 1, 2), heads=1, window=2), (8, 4, 4), (16, 2, 2)),
    "convnext": (ConvNeXt(patch=2, width=4, depths=(1, 1), scale=1.0), (4, 8, 8), (8, 4, 4)),
    "convnet": (ConvNet(depth=3, width=6, norm="batch"), (6, 4, 4), (6, 4, 4)),
    "vit of transformers": (HF_VIT, (8, 4, 4), (8, 4, 4)),
    "swin of transformers": (HF_SWIN, (16, 2, 2), (16, 2, 2)),
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def made(spec, channels=3, size=16):
    like = SimpleNamespace(channels=channels, size=size, num_classes=5)
    module = nets.fresh(spec, like, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    torch.manual_seed(1)
    for layer in module.modules():  # a norm that does nothing could not be missed
        if isinstance(layer, nn.LayerNorm | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -1.0, 1.0)
    return module


def images(n=3):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def whole(module, x):
    """Return what the last stage reads, and what it gives, as maps."""
    found = []
    handle = module.stages[-1].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        _, given = read(module, x, ["stage:-1"])
    finally:
        handle.remove()
    return found[0] if found[0].dim() == 4 else module.map_of(found[0]), given["stage:-1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tail_makes_of_what_it_reads_what_the_network_makes_of_it(family):
    spec, entry, last = FAMILIES[family]
    module = made(spec)
    tail = Tail(module, "", images(2))
    assert (tuple(tail.entry), tuple(tail.exit)) == (entry, last)
    given, end = whole(module, images())
    told = tail(given)
    assert told.shape == end.shape
    if family in {"vit with a class token", "vit of transformers"}:  # places alone are read, so they miss that token
        assert not torch.allclose(told, tail.finish(end), atol=1e-4)
    else:
        torch.testing.assert_close(told, tail.finish(end))


@pytest.mark.parametrize("family", ["vit", "mixer", "swin", "swin of transformers"])
def test_the_last_map_is_the_one_behind_the_norm_whose_mean_is_the_embedding(family):
    module = made(FAMILIES[family][0])
    tail = Tail(module, "", images(2))
    given, end = whole(module, images())
    embedding = module.embed(images())
    torch.testing.assert_close(tail(given).mean((2, 3)), embedding)
    torch.testing.assert_close(tail.finish(end).mean((2, 3)), embedding)
    assert not torch.allclose(end.mean((2, 3)), embedding, atol=1e-2)


def test_a_class_token_is_left_out_and_the_places_attend_to_each_other():
    module = made(FAMILIES["vit with a class token"][0])
    tail = Tail(module, "stage:-2", images(2))
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(3))
    tokens = module.stages[2](module.stages[1](x.flatten(2).transpose(1, 2)))
    wanted = module.collapse[0](tokens).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(tail(x), wanted)


def test_gradients_pass_to_the_map_and_the_network_stays_as_it_is():
    module = made(FAMILIES["swin"][0])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tail = Tail(module.train(), "", images(2))
    assert module.training
    module.eval()
    x = torch.randn(2, *tail.entry, requires_grad=True, dtype=torch.float32)
    double = tail(x).square().sum()
    (gradient,) = torch.autograd.grad(double, x)
    step = 1e-2 * gradient / gradient.norm()
    change = tail(x + step).square().sum() - tail(x - step).square().sum()
    torch.testing.assert_close(change / 2, (gradient * step).sum(), rtol=2e-2, atol=1e-3)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_by_itself_a_tail_is_the_last_stage_or_of_many_blocks_the_last_twelfth():
    class Deep(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.stages = nn.ModuleList(nn.Identity() for _ in range(blocks))

    assert [cut(Deep(blocks), "")[1] for blocks in (1, 4, 12, 23, 24, 36)] == [0, 3, 11, 22, 22, 33]
    assert cut(Deep(4), "")[2] == "stage:-1"


def test_blocks_are_named_in_any_network_of_any_library():
    module = made(HF_VIT)
    assert cut(module, "stage:-2")[1:] == (1, "stage:-1")
    assert cut(module, "model.vit.layers.1")[1:] == (1, "stage:-1")
    plain = module.original().eval().requires_grad_(False)
    stages, first, last = cut(plain, "vit.layers.1")
    assert (len(stages), first, last) == (3, 1, "vit.layers.2")
    tail = Tail(plain, "vit.layers.1", images(2))
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(tail(x), Tail(module, "stage:1", images(2))(x))
    _, found = read(plain, images(), [last])
    assert tail.finish(found[last]).shape == (3, 8, 4, 4)


class Mixed(nn.Module):
    """Blocks that do not simply follow one another."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))

    def forward(self, x):
        return self.stages[1](self.stages[0](x) + x)


class Counting(nn.Module):
    """A block that is told something about each sample."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([Offset()])

    def forward(self, x):
        return self.stages[0](x, torch.arange(len(x)).float()[:, None, None, None])


class Offset(nn.Module):
    def forward(self, x, offset):
        return x + offset


def test_what_cannot_be_cut_is_told_before_it_is_needed():
    with pytest.raises(RecipeError, match="follow one another"):
        Tail(Mixed(), "stage:0", images(2))
    with pytest.raises(RecipeError, match="follow one another"):
        Tail(Counting(), "", images(2))
    with pytest.raises(RecipeError, match="maps or tokens"):
        Tail(made(MLP(width=8)), "", images(2))
    with pytest.raises(RecipeError, match="has no stages"):
        cut(nn.Linear(2, 2), "")
    with pytest.raises(RecipeError, match="no place 'stages"):
        cut(made(VIT), "stages.9")
    with pytest.raises(RecipeError, match="no block in a list"):
        cut(made(VIT), "stages.1:input")
    with pytest.raises(RecipeError, match="no block in a list"):
        cut(made(VIT), "head")
    with pytest.raises(RecipeError, match="3 stages"):
        cut(made(VIT), "stage:5")

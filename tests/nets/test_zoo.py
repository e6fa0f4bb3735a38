"""The networks of the CRD benchmark have its sizes, its maps and the activations it distils before and behind."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import AttarError, RecipeError
from attar.nets import NETS
from attar.spec import build, spec

SMALL = {
    "staged": nets.StagedResNet(blocks=(1, 2), widths=(4, 8)),
    "cifar-resnet": nets.CifarResNet(depth=8),
    "wrn": nets.WideResNet(depth=10, multiplier=1),
    "wrn-wide": nets.WideResNet(depth=16, multiplier=2),
    "resnet50": nets.ResNet50(width=4),
    "cifar-vgg": nets.CifarVGG(depth=16, width=4),
    "mobilenetv2": nets.MobileNetV2(multiplier=0.25, expansion=2),
    "shufflev1": nets.ShuffleNetV1(width=48),
    "shufflev2": nets.ShuffleNetV2(multiplier=0.5),
}
PUBLISHED = {  # parameters on CIFAR-100, as the benchmark's own code has them
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn-16-1": 180_916,
    "wrn-16-2": 703_284,
    "wrn-40-1": 569_780,
    "wrn-40-2": 2_255_156,
    "resnet50": 23_705_252,
    "vgg8": 3_965_028,
    "cifar-vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenetv2": 812_836,
    "shufflev1": 949_258,
    "shufflev2": 1_355_528,
}


def made(network, size=32, classes=5, channels=3):
    like = SimpleNamespace(channels=channels, size=size, num_classes=classes)
    return nets.fresh(network, like, torch.Generator().manual_seed(0))


def images(n=2, size=32, channels=3):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_benchmarks(name):
    with torch.device("meta"):
        assert nets.count_parameters(NETS[name].build(3, 32, 100)) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "shapes", "features"),
    [
        ("resnet20", [(16, 32), (32, 16), (64, 8)], 64),
        ("resnet8x4", [(64, 32), (128, 16), (256, 8)], 256),
        ("wrn-16-2", [(32, 32), (64, 16), (128, 8)], 128),
        ("resnet50", [(256, 32), (512, 16), (1024, 8), (2048, 4)], 2048),
        ("vgg8", [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], 512),
        ("mobilenetv2", [(12, 16), (16, 8), (48, 4), (160, 2)], 1280),
        ("shufflev1", [(240, 16), (480, 8), (960, 4)], 960),
        ("shufflev2", [(116, 16), (232, 8), (464, 4)], 1024),
    ],
)
def test_maps_have_the_benchmarks_channels_and_sizes(name, shapes, features):
    with torch.device("meta"):
        maps, embedding = NETS[name].build(3, 32, 100).features(torch.empty(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(c, s, s) for c, s in shapes]
    assert embedding.shape == (1, features)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [8, 13, 28])
def test_every_network_keeps_the_contract_at_every_size(name, size):
    module = made(SMALL[name], size=size, channels=1)
    x = images(3, size, 1)
    logits = module(x)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    module.eval()
    maps, embedding = module.features(x)
    torch.testing.assert_close(module.embed(x), embedding)
    torch.testing.assert_close(module.head(embedding), module(x))
    assert embedding.shape == (3, module.num_features)
    assert len(maps) == len(module.stages) == len(module.activations)
    with torch.no_grad():
        again = made(SMALL[name], size=size, channels=1)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))


def test_a_vgg_reads_28_pixels_as_32_and_pools_once_more_from_64():
    maps, _ = made(nets.CifarVGG(depth=8, width=2), size=28).features(images(size=28))
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 4]
    maps, _ = made(nets.CifarVGG(depth=8, width=2), size=64).features(images(size=64))
    assert [m.shape[-1] for m in maps] == [64, 32, 16, 8, 4]
    with pytest.raises(AttarError, match="below 8×8"):
        made(nets.CifarVGG(), size=7)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "mobilenetv2"] + ["convnet", "resnet18", "mlp"])
def test_a_map_is_the_relu_of_the_map_before_activation(name):
    module = made(SMALL.get(name) or {"convnet": nets.ConvNet(depth=2, width=4, norm="batch"), "mlp": nets.MLP(),
                                      "resnet18": nets.ResNet18(width=4)}[name]).eval()  # fmt: skip
    before, embedding = module.before_activation(images())
    maps, expected = module.features(images())
    torch.testing.assert_close(embedding, expected)
    for one, other in zip(before, maps, strict=True):
        assert (one < 0).any()
        torch.testing.assert_close(one.relu(), other)
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_what_goes_into_the_named_activation_is_the_map_before_it():
    module = made(nets.CifarResNet(depth=8)).eval()
    assert module.activations == ["stages.0.1.activation", "stages.1.0.activation", "stages.2.0.activation"]
    seen = []
    module.get_submodule(module.activations[1]).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    before, _ = module.before_activation(images())
    assert torch.equal(seen[0], before[1])


def test_stages_that_end_linearly_have_one_map_for_both():
    for network in (SMALL["mobilenetv2"], nets.ConvNet(depth=1, width=4, pool="none")):
        module = made(network).eval()
        before, _ = module.before_activation(images())
        maps, _ = module.features(images())
        linear = network is SMALL["mobilenetv2"]
        assert all(torch.equal(a, b) == linear for a, b in zip(before, maps, strict=True))
        assert [path is None for path in module.activations] == [linear] * len(maps)
        assert any((m < 0).any() for m in maps) == linear


def test_a_hook_is_taken_off_where_the_forward_fails():
    module = made(nets.CifarResNet(depth=8))
    with pytest.raises(RuntimeError):
        module.before_activation(torch.zeros(1, 7, 32, 32))
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_a_wide_block_that_changes_nothing_adds_its_raw_input_and_one_that_does_reads_it_activated():
    from attar.nets.residual import WideBlock

    x = images(channels=4, size=6)
    for outputs, stride in ((4, 1), (8, 2)):
        block = WideBlock(4, outputs, stride).eval()
        nn.init.zeros_(block.body[-1].weight)
        expected = x if stride == 1 else block.shortcut(x)
        assert torch.equal(block(x), expected)
    wide, narrow = made(SMALL["wrn-wide"]), made(SMALL["wrn"])
    assert isinstance(wide.stages[0][1], nn.BatchNorm2d)  # ahead of both ways of a block that changes the channels
    assert isinstance(narrow.stages[0][1], WideBlock)


def test_shuffles_interleave_the_halves():
    from attar.nets.mobile import SplitBlock

    block = SplitBlock(4, 4, stride=1).eval()
    x = images(channels=4, size=5).abs()
    changed = block.body(x[:, 2:])
    expected = torch.stack([x[:, 0], changed[:, 0].relu(), x[:, 1], changed[:, 1].relu()], 1)
    torch.testing.assert_close(block(x), expected)


def test_a_strided_block_of_shufflenet_lays_its_averaged_input_beside():
    from attar.nets.mobile import GroupedBlock

    block = GroupedBlock(24, 48, stride=2, groups=3).eval()
    assert [layer.groups for layer in block.body if isinstance(layer, nn.Conv2d)] == [1, 6, 3]  # the stem's 24 as one
    x = images(channels=24, size=6)
    torch.testing.assert_close(block(x)[:, 24:], nn.functional.avg_pool2d(x, 3, 2, 1).relu())


@spec
class Recipe:
    net: nets.Net = nets.DoublingConvNet()


def test_a_name_stands_for_its_spec_and_takes_changes():
    assert build(Recipe, {"net": "resnet8x4"}).net == nets.CifarResNet(depth=8, multiplier=4)
    assert build(Recipe, {"net": "wrn-16-2", "net.depth": 22}).net == nets.WideResNet(depth=22, multiplier=2)
    assert build(Recipe, {"net": {"kind": "resnet18-bn", "width": 8}}).net == nets.ResNet18(norm="batch", width=8)
    assert build(Recipe, {"net": "convnet-bn"}).net == nets.ConvNet(norm="batch")
    assert build(Recipe, {"net.kind": "wrn"}).net == nets.WideResNet()
    for name, network in NETS.items():
        assert build(Recipe, {"net": name}).net == network


def test_mistakes_are_explained():
    with pytest.raises(RecipeError, match=r"unknown network 'resnet9x4'; did you mean 'resnet8x4'\? Known: convnet"):
        build(Recipe, {"net": "resnet9x4"})
    for kind, field, value, told in (
        ("cifar-resnet", "depth", 18, r"6n \+ 2"),
        ("wrn", "depth", 18, r"6n \+ 4"),
        ("shufflev1", "width", 100, "multiples of 4 · groups = 12"),
        ("mobilenetv2", "multiplier", 0.01, "at least 0.0625"),
        ("shufflev2", "multiplier", 3, "0.5, 1, 1.5 and 2"),
    ):
        with pytest.raises(RecipeError, match=told):
            build(Recipe, {"net": kind, f"net.{field}": value})

"""The reference networks have the field's shapes and sizes, and refuse images they cannot read."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import AttarError, RecipeError
from attar.nets.network import normalisation
from attar.spec import build, spec

SMALL = {
    "convnet": nets.ConvNet(depth=2, width=4),
    "convnet-batch": nets.ConvNet(depth=2, width=4, norm="batch"),
    "convnet-layer": nets.ConvNet(depth=2, width=4, norm="layer", activation="leaky"),
    "convnet-group": nets.ConvNet(depth=2, width=4, norm="group", activation="sigmoid"),
    "convnet-none": nets.ConvNet(depth=2, width=4, norm="none", pool="none"),
    "convnet-max": nets.ConvNet(depth=2, width=4, pool="max", activation="swish"),
    "convnet-doubling": nets.DoublingConvNet(depth=2, width=4),
    "mlp": nets.MLP(width=8),
    "lenet": nets.LeNet(),
    "alexnet": nets.AlexNet(width=4),
    "alexnet-layer": nets.AlexNet(width=4, norm="layer"),
    "vgg11": nets.VGG11(width=4),
    "vgg11-layer": nets.VGG11(width=4, norm="layer"),
    "resnet18": nets.ResNet18(width=4),
    "resnet18-layer": nets.ResNet18(width=4, norm="layer"),
    "resnet18-none": nets.ResNet18(width=4, norm="none"),
    "resnet18-average": nets.ResNet18(width=4, downsample="average"),
    "resnet18-average-layer": nets.ResNet18(width=4, downsample="average", norm="layer"),
}


@pytest.mark.parametrize(
    ("network", "channels", "size", "parameters"),
    [  # counts by hand or from the literature on CIFAR-10 and the small profile
        (nets.ConvNet(), 3, 32, 320_010),
        (nets.ConvNet(depth=2, width=32), 1, 14, 12_586),
        (nets.ConvNet(depth=2, width=32), 1, 8, 10_986),
        (nets.ConvNet(depth=3, width=32), 1, 28, 24_138),
        (nets.DoublingConvNet(depth=2, width=4), 1, 8, (4 * 9 + 3 * 4) + (8 * 36 + 3 * 8) + 10 * (8 * 4 + 1)),
        (nets.MLP(), 1, 28, 784 * 128 + 128 + 128 * 128 + 128 + 1290),
        (nets.LeNet(), 3, 32, 62_006),
        (nets.LeNet(), 1, 28, 61_706),
        (nets.AlexNet(), 3, 32, 1_872_202),
        (nets.VGG11(norm="batch"), 3, 32, 9_231_114),
        (nets.ResNet18(norm="batch"), 3, 32, 11_173_962),
    ],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_parameter_counts_are_the_fields(network, channels, size, parameters):
    assert nets.count_parameters(network.build(channels, size, 10)) == parameters


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", ["minimum", 13, 28, 33])
def test_every_network_keeps_the_contract_at_every_size_it_accepts(name, size):
    network = SMALL[name]
    size = network.minimum_size if size == "minimum" else max(size, network.minimum_size)
    torch.manual_seed(0)
    module = network.build(2, size, 5)
    x = torch.randn(3, 2, size, size)
    maps, embedding = module.features(x)
    logits = module(x)
    assert embedding.shape == (3, module.num_features)
    assert logits.shape == (3, module.num_classes) == (3, 5)
    assert isinstance(module.head, nn.Linear)
    if not nets.batch_statistics(module):  # batch statistics move between two calls, not the outputs
        torch.testing.assert_close(module.embed(x), embedding)
        torch.testing.assert_close(module.head(embedding), logits)
    assert len(maps) == len(module.stages)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", [name for name in SMALL if SMALL[name].minimum_size > 1])
def test_a_pixel_under_the_minimum_is_refused_with_the_minimum(name):
    network = SMALL[name]
    least = network.minimum_size
    with pytest.raises(AttarError, match=f"below {least}×{least}"):
        network.build(1, least - 1, 10)


def test_vgg_refuses_14_pixels():
    with pytest.raises(AttarError, match=r"VGG11 IN cannot read 14×14 images.*28×28"):
        nets.VGG11().build(1, 14, 10)


def test_28_pixels_become_32_behind_the_first_convolution():
    for network in (nets.ConvNet(depth=3, width=4), nets.AlexNet(width=4), nets.VGG11(width=4)):
        maps, _ = network.build(1, 28, 10).features(torch.zeros(2, 1, 28, 28))
        assert maps[0].shape[-1] == 32
    assert nets.ConvNet(depth=3, width=4).build(1, 28, 10).num_features == 4 * 4 * 4
    assert nets.ConvNet(depth=5, width=4).build(1, 28, 10).num_features == 4


def test_convnet_maps_are_activations_before_pooling():
    module = nets.ConvNet(depth=2, width=4).build(1, 14, 10)
    x = torch.randn(3, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    maps, embedding = module.features(x)
    assert [m.shape for m in maps] == [(3, 4, 14, 14), (3, 4, 7, 7)]
    assert all((m >= 0).all() and (m == 0).any() for m in maps)
    torch.testing.assert_close(nn.functional.avg_pool2d(maps[1], 2).flatten(1), embedding)


def test_instance_norm_equals_a_group_norm_of_single_channels_with_gradients():
    rng = torch.Generator().manual_seed(0)
    ours, theirs = normalisation("instance", 6, 7), nn.GroupNorm(6, 6)
    x = torch.randn(5, 6, 7, 7, generator=rng)
    weights = torch.randn(5, 6, 7, 7, generator=rng)
    with torch.no_grad():
        theirs.weight.copy_(torch.randn(6, generator=rng))
        theirs.bias.copy_(torch.randn(6, generator=rng))
        ours.load_state_dict(theirs.state_dict())
    results = []
    for layer in (ours, theirs):
        inputs = x.clone().requires_grad_()
        out = layer(inputs)
        first = torch.autograd.grad((out * weights).sum(), [inputs, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), inputs)
        results.append([out, *first, *second])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_group_norm_normalises_each_quarter_of_the_channels():
    layer = normalisation("group", 8, 5)
    out = layer(3 + 2 * torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0)))
    quarters = out.reshape(2, 4, -1)
    torch.testing.assert_close(quarters.mean(-1), torch.zeros(2, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(quarters.var(-1, unbiased=False), torch.ones(2, 4), rtol=0, atol=1e-3)


def test_average_pooled_resnet_has_no_strided_convolution_and_a_flat_output():
    module = nets.ResNet18(width=4, downsample="average").build(3, 32, 10)
    assert all(m.stride == (1, 1) for m in module.modules() if isinstance(m, nn.Conv2d))
    assert module.num_features == 32 * 4 * 4
    strided = nets.ResNet18(width=4).build(3, 32, 10)
    assert sum(m.stride == (2, 2) for m in strided.modules() if isinstance(m, nn.Conv2d)) == 6
    assert strided.num_features == 32


def test_swish_block_is_x_times_its_sigmoid():
    module = nets.ConvNet(depth=1, width=4, norm="none", activation="swish").build(1, 6, 10)
    x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    before = module.stages[0][0](x)
    torch.testing.assert_close(module.features(x)[0][0], before * before.sigmoid())


def test_labels_are_short_and_tell_the_pool_apart():
    labels = [network.label for network in nets.NETS.values()]
    assert len(set(labels)) == len(labels)
    assert nets.ConvNet(width=32, depth=2).label == "ConvNet-2 w32 IN"
    assert nets.NETS["convnet-swish-bn"].label == "ConvNet-3 w128 BN swish"


def test_batch_statistics_are_found_where_they_are():
    assert all(nets.batch_statistics(n.build(1, 32, 10)) == ("batch" in name) for name, n in SMALL.items())


def test_a_net_field_takes_a_name_or_nested_values_and_explains_mistakes():
    @spec
    class Recipe:
        net: nets.Net = nets.ConvNet()

    assert build(Recipe, {"net": "resnet18"}).net == nets.ResNet18()
    assert build(Recipe, {"net.width": 64}).net == nets.ConvNet(width=64)
    with pytest.raises(RecipeError, match="multiple of 4"):
        build(Recipe, {"net.width": 6, "net.norm": "group"})
    with pytest.raises(RecipeError, match="resnet18"):
        build(Recipe, {"net": "resnet19"})


def test_no_channels_or_classes_are_refused():
    with pytest.raises(RecipeError, match="at least one channel"):
        nets.MLP().build(0, 8, 10)


def test_specs_load_no_torch():
    code = (
        "import attar.nets, attar.nets.specs, sys; assert 'torch' not in sys.modules; attar.nets.NETS['convnet'].label"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_of_the_package_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'frehs'"):
        nets.frehs  # noqa: B018

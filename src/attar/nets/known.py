"""Every network by its name: the union of all specs, and what a name alone stands for."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from attar.errors import did_you_mean
from attar.nets.specs import MLP, VGG11, AlexNet, ConvNet, DoublingConvNet, LeNet, ResNet18
from attar.nets.token_specs import ConvNeXt, Mixer, Swin, ViT
from attar.nets.transformers_spec import TransformersNet
from attar.nets.zoo_specs import (
    CifarResNet,
    CifarVGG,
    MobileNetV2,
    ResNet50,
    ShuffleNetV1,
    ShuffleNetV2,
    StagedResNet,
    WideResNet,
)
from attar.spec import kinds, to_json

_SPECS: tuple[Any, ...] = (
    ConvNet, DoublingConvNet, MLP, LeNet, AlexNet, VGG11, ResNet18,
    CifarResNet, StagedResNet, WideResNet, ResNet50, CifarVGG, MobileNetV2, ShuffleNetV1, ShuffleNetV2,
    ViT, Swin, Mixer, ConvNeXt, TransformersNet,
)  # fmt: skip
_KINDS = tuple(str(net.__pydantic_fields__["kind"].default) for net in _SPECS)


def _by_name(value: Any) -> Any:
    """Return a name, or a mapping whose `kind` is one, as a spec's own mapping: what is beside the name goes on top."""
    told = {"kind": value} if isinstance(value, str) else value
    if not isinstance(told, Mapping) or "kind" not in told or told["kind"] in _KINDS:
        return told
    name = str(told["kind"])
    if name not in NETS:
        names = [*_KINDS, *(name for name in NETS if name not in _KINDS)]
        raise ValueError(f"unknown network '{name}'{did_you_mean(name, names)} Known: {', '.join(names)}")
    return {**to_json(NETS[name]), **{key: field for key, field in told.items() if key != "kind"}}


if TYPE_CHECKING:
    Net = (
        ConvNet
        | DoublingConvNet
        | MLP
        | LeNet
        | AlexNet
        | VGG11
        | ResNet18
        | CifarResNet
        | StagedResNet
        | WideResNet
        | ResNet50
        | CifarVGG
        | MobileNetV2
        | ShuffleNetV1
        | ShuffleNetV2
        | ViT
        | Swin
        | Mixer
        | ConvNeXt
        | TransformersNet
    )
else:
    Net = Annotated[kinds(functools.reduce(operator.or_, _SPECS)), BeforeValidator(_by_name)]

NETS: Mapping[str, Net] = MappingProxyType(
    {
        "convnet": ConvNet(),
        "convnet-bn": ConvNet(norm="batch"),
        "convnet-swish-bn": ConvNet(norm="batch", activation="swish"),
        "mlp": MLP(),
        "lenet": LeNet(),
        "alexnet": AlexNet(),
        "alexnet-bn": AlexNet(norm="batch"),
        "vgg11": VGG11(),
        "vgg11-bn": VGG11(norm="batch"),
        "resnet18": ResNet18(),
        "resnet18-bn": ResNet18(norm="batch"),
        "resnet18-ap": ResNet18(downsample="average"),
        "resnet18-bn-ap": ResNet18(norm="batch", downsample="average"),
        **{f"resnet{depth}": CifarResNet(depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
        **{f"resnet{depth}x4": CifarResNet(depth=depth, multiplier=4) for depth in (8, 32)},
        **{f"wrn-{depth}-{wide}": WideResNet(depth=depth, multiplier=wide) for depth in (16, 40) for wide in (1, 2)},
        "staged-resnet": StagedResNet(),
        "resnet50": ResNet50(),
        **{f"vgg{depth}": CifarVGG(depth=depth) for depth in (8, 13, 16, 19)},
        "cifar-vgg11": CifarVGG(depth=11),  # vgg11 is the one of data distillation
        "mobilenetv2": MobileNetV2(),
        "shufflev1": ShuffleNetV1(),
        "shufflev2": ShuffleNetV2(),
        "vit": ViT(),
        "swin": Swin(),
        "mixer": Mixer(),
        "convnext": ConvNeXt(),
        **{
            f"transformers-{family}": TransformersNet(config={"model_type": family})
            for family in ("resnet", "vit", "deit", "swin", "convnext")
        },
    }
)
"""Networks by name. The first thirteen are the cross-architecture pool of data distillation: the papers' sizes, plain,
and with batch norm (`-bn`); then come those of the CRD benchmark of model distillation, networks on tokens,
and transformers' own at full size: ResNet-50, ViT-B, DeiT-B, Swin-T, ConvNeXt-T with fresh weights."""

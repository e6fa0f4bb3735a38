"""Small reference networks. The specs load no torch; what needs it is loaded when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attar.nets.known import NETS, Net
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

if TYPE_CHECKING:
    from attar.nets.initialise import batch_statistics, count_parameters, freeze, fresh, reset
    from attar.nets.network import Network

__all__ = [
    "MLP",
    "NETS",
    "VGG11",
    "AlexNet",
    "CifarResNet",
    "CifarVGG",
    "ConvNeXt",
    "ConvNet",
    "DoublingConvNet",
    "LeNet",
    "Mixer",
    "MobileNetV2",
    "Net",
    "Network",
    "ResNet18",
    "ResNet50",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "StagedResNet",
    "Swin",
    "TransformersNet",
    "ViT",
    "WideResNet",
    "batch_statistics",
    "count_parameters",
    "freeze",
    "fresh",
    "reset",
]

_NEED_TORCH = {
    "Network": "network",
    **dict.fromkeys(["batch_statistics", "count_parameters", "freeze", "fresh", "reset"], "initialise"),
}


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)

"""Image classifiers of the transformers library as a spec: by the name of a checkpoint, or by their configuration."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from attar.nets.specs import check_shape
from attar.spec import digest, spec

if TYPE_CHECKING:
    from attar.nets.network import Network

# keys of a configuration that would fetch or run something instead of saying how large a network is
_REFUSED = {"auto_map", "attn_implementation", "backbone", "quantization_config", "use_pretrained_backbone"}
_MOST_BLOCKS = 1000


@spec
class TransformersNet:
    """A classifier of transformers: ResNet, ViT, DeiT, Swin, ConvNeXt … at any size, with its weights or fresh ones.

    With a `name` weights are the checkpoint's (the head is drawn anew where it has none of that many classes), and
    images are resized to what it was made for; grey ones are shown in three equal channels. With a `config` alone
    weights are drawn as transformers draws them, for the data's own channels and size. Dropout is off unless the config
    says so.
    """

    kind: Literal["transformers"] = "transformers"
    name: str = ""  # a folder with config.json, or a name on the hub; read when a network is made, never before
    config: dict[str, Any] = Field(default_factory=dict)  # `model_type` (without a name), and values that differ

    @field_validator("config")
    @classmethod
    def _plain(cls, config: dict[str, Any]) -> dict[str, Any]:
        if told := [key for key in config if key.startswith("_") or key in _REFUSED]:
            raise ValueError(f"'{told[0]}' is no size of a network; leave it out")
        for key, value in config.items():
            if isinstance(value, dict):
                cls._plain(value)
            numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]
            if ("layers" in key or "depths" in key) and max(numbers, default=0) > _MOST_BLOCKS:
                raise ValueError(f"'{key}' asks for more than {_MOST_BLOCKS} blocks")
        return config

    @model_validator(mode="after")
    def _known(self) -> TransformersNet:
        if not self.name and not isinstance(self.config.get("model_type"), str):
            raise ValueError(
                "a network of transformers is known by the name of a checkpoint, net.name=FOLDER, or by its family, "
                "net.config.model_type=vit (or resnet, deit, swin, convnext, …)"
            )
        return self

    def __hash__(self) -> int:
        return hash((self.name, digest(self.config)))  # what is compiled is kept by its network

    @property
    def minimum_size(self) -> int:
        """Smallest side in pixels; images that fill no whole patch are resized."""
        return 1

    @property
    def label(self) -> str:
        """Short printable name."""
        return f"transformers {PurePath(self.name).name or self.config['model_type']}"

    def build(self, channels: int, size: int, classes: int) -> Network:
        """Build the module for images `[n, channels, size, size]`, with random weights; `nets.reset` gives it its own.

        Raises:
            RecipeError: transformers is not installed, or has no such family or no such value.
            AttarError: no checkpoint has that name.
        """
        from attar.nets import transformers_network

        check_shape(self, channels, size, classes)
        return transformers_network.TransformersNetwork(self, channels, size, classes)

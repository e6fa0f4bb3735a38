"""A dual encoder: what makes images and texts comparable, with the tokenizer that its texts need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor

from attar.artifacts.base import Artifact
from attar.data.tokenizers import Tokenizer, rebuilt
from attar.nets.dual import DualEncoder
from attar.nets.dual_specs import DualNet
from attar.spec import to_json


class DualStudent(Artifact):
    """Two trained towers and how to build and feed them again.

    Args:
        module: the trained towers.
        net: their spec.
        tokenizer: of its texts.
        channels: colour channels of its images.
        size: pixels a side of its images.
        template: what is said of a class whose images have no captions.
    """

    kind: ClassVar[str] = "dual-encoder"

    def __init__(
        self, module: DualEncoder, net: DualNet, tokenizer: Tokenizer, *, channels: int, size: int, template: str
    ) -> None:
        super().__init__()
        self.module, self.net, self.tokenizer = module, net, tokenizer
        self.channels, self.size, self.template = channels, size, template

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return vectors of length 1 `[n, dimensions]` of texts."""
        ids = self.tokenizer.ids(texts, self.net.text.context)
        return self.module.texts(ids.to(self.module.log_scale.device))

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and buffers."""
        return dict(self.module.state_dict())

    def about(self) -> dict[str, Any]:
        """Return how the towers are built and fed."""
        return {
            "net": to_json(self.net),
            "vocabulary": len(self.module.text.tokens),
            "tokenizer": self.tokenizer.about(),
            "channels": self.channels,
            "size": self.size,
            "template": self.template,
        }

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the towers around their weights, on no memory, so that a file that claims huge ones takes none.

        Raises:
            ValueError: a weight has another type than the network's, or the tokenizer is none.
            RuntimeError: the weights are not those of the network.
        """
        net = TypeAdapter(DualNet).validate_python(about["net"])
        tokenizer, channels, size = rebuilt(about["tokenizer"]), about["channels"], about["size"]
        with torch.device("meta"):
            module = net.build(channels, size, about["vocabulary"])
        if tokenizer.vocabulary > about["vocabulary"]:
            raise ValueError(f"a tokenizer of {tokenizer.vocabulary} ids for {about['vocabulary']} tokens")
        for name, expected in module.state_dict().items():
            if name in tensors and tensors[name].dtype != expected.dtype:
                raise ValueError(f"'{name}' is {tensors[name].dtype}, not {expected.dtype}")
        module.load_state_dict(dict(tensors), assign=True)
        module.end = tokenizer.end
        made = module.requires_grad_(True).eval()
        return cls(made, net, tokenizer, channels=channels, size=size, template=str(about["template"]))

"""An encoder that was trained without labels, with the decoder that was trained with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from attar.artifacts.student import Student
from attar.artifacts.targeted import UNLABELLED
from attar.nets.masked import Decoder, MaskedAutoencoder, MaskedDecoder, transformer
from attar.spec import to_json

PREFIX = "decoder."


class Encoder(Student):
    """A network whose features were learned without labels; its head was never trained and has one output."""

    kind: ClassVar[str] = "encoder"

    def __init__(self, module: nn.Module, net: Any, channels: int, size: int, classes: tuple[str, ...] = ()) -> None:
        super().__init__(module, net, channels, size, classes or UNLABELLED)


class Autoencoder(Encoder):
    """An encoder with its decoder.

    Attributes:
        decoder: from the encoder's tokens to a guess at every place.
        shape: the decoder's spec.
        target: what it guesses, as JSON values.
    """

    kind: ClassVar[str] = "autoencoder"
    decoder: MaskedDecoder
    shape: Decoder
    target: Mapping[str, Any]

    @classmethod
    def of(cls, encoder: Encoder, decoder: MaskedDecoder, shape: Decoder, target: Mapping[str, Any]) -> Self:
        """Return an encoder with the decoder that was trained with it."""
        self = cls(encoder.module, encoder.net, encoder.channels, encoder.size, encoder.classes)
        self.decoder, self.shape, self.target = decoder, shape, dict(target)
        return self

    @property
    def network(self) -> MaskedAutoencoder:
        """Encoder and decoder as one module."""
        return MaskedAutoencoder(transformer(self.module), self.decoder)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of both."""
        return {**super().tensors(), **{f"{PREFIX}{name}": t for name, t in self.decoder.state_dict().items()}}

    def about(self) -> dict[str, Any]:
        """Return how both are built."""
        told = {"shape": to_json(self.shape), "outputs": self.decoder.predict.out_features, "target": dict(self.target)}
        return {**super().about(), "decoder": told}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build both around their weights, on no memory before."""
        encoder = Encoder.rebuild(about, {name: t for name, t in tensors.items() if not name.startswith(PREFIX)})
        told, net = about["decoder"], transformer(encoder.module)
        shape = TypeAdapter(Decoder).validate_python(told["shape"])
        with torch.device("meta"):
            patches = net.patches
            made = MaskedDecoder(shape, encoder.net.width, int(told["outputs"]), patches.side, patches.leading)
        own = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
        for name, expected in made.state_dict().items():
            if name in own and own[name].dtype != expected.dtype:
                raise ValueError(f"'{PREFIX}{name}' is {own[name].dtype}, not {expected.dtype}")
        made.load_state_dict(own, assign=True)
        return cls.of(encoder, made.eval(), shape, told["target"])

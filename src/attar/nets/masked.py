"""Vision transformers that read a part of an image's patches, and the decoder that guesses the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from attar import nets
from attar.errors import AttarError
from attar.nets.initialise import ImageShape, seeded
from attar.nets.network import Network
from attar.nets.token_specs import ViT
from attar.nets.tokens import EPSILON, STD, TokenNetwork, TransformerBlock
from attar.spec import spec

WAVES = 10_000.0  # the longest wave of the positions, over 2π


@spec
class Decoder:
    """A transformer from an encoder's tokens and mask tokens to a guess at every place. Defaults are MAE's."""

    width: int = Field(default=512, ge=4)  # channels of a token
    depth: int = Field(default=8, ge=0)  # blocks
    heads: int = Field(default=16, ge=1)  # of the attention

    @model_validator(mode="after")
    def _heads(self) -> Decoder:
        if self.width % self.heads:
            raise ValueError("heads share the width, so the width must be a multiple of heads")
        return self


@dataclass(frozen=True)
class Masking:
    """Which places of each image an encoder reads.

    Attributes:
        kept: `[n, k]` int64, the places it reads, in the order in which it reads them.
        restore: `[n, places]` int64, where each place stands in the kept ones with the hidden ones behind them.
    """

    kept: Tensor
    restore: Tensor

    @classmethod
    def of(cls, order: Tensor, keep: int) -> Masking:
        """Return the masking that keeps the first `keep` of `order` `[n, places]`, a permutation in each row."""
        return cls(order[:, :keep], order.argsort(1))

    @property
    def hidden(self) -> Tensor:
        """Whether each place is hidden, bool `[n, places]`."""
        return self.restore >= self.kept.shape[1]

    def take(self, places: Tensor) -> Tensor:
        """Return the kept ones of `places` `[n, places, d]`, in the order of `kept`: `[n, k, d]`."""
        return _gathered(places, self.kept)

    def rows(self, rows: slice) -> Masking:
        """Return the maskings of some images."""
        return Masking(self.kept[rows], self.restore[rows])

    def to(self, device: torch.device | str) -> Masking:
        """Return the same on a device."""
        return Masking(self.kept.to(device), self.restore.to(device))


def encode(
    encoder: TokenNetwork, images: Tensor, masking: Masking | None = None, *, blocks: int | None = None
) -> Tensor:
    """Return the tokens behind the first `blocks` blocks (none: all), before the last norm.

    Positions are added first; then hidden places are left out, so that a step costs what the kept ones cost.

    Returns:
        `[n, leading + k, width]`: the class token, where there is one, ahead of the kept places in their order.
    """
    patches = encoder.patches
    tokens = patches(images)
    if masking is not None:
        tokens = torch.cat([tokens[:, : patches.leading], masking.take(tokens[:, patches.leading :])], 1)
    for block in encoder.stages[:blocks]:
        tokens = block(tokens)
    return tokens


def encode_on(encoder: TokenNetwork, tokens: Tensor, *, blocks: int) -> Tensor:
    """Return tokens that are behind the first `blocks` blocks as they are behind all of them and the last norm."""
    for block in encoder.stages[blocks:]:
        tokens = block(tokens)
    out: Tensor = last_norm(encoder)(tokens)
    return out


def last_norm(encoder: TokenNetwork) -> nn.Module:
    """Return the norm behind the last block, which pooling and decoder read."""
    norm: nn.Module = encoder.collapse.get_submodule("0")
    return norm


class MaskedDecoder(nn.Module):
    """Puts a learned token at every hidden place, adds positions, and guesses what is there.

    Args:
        spec: its size.
        inputs: channels of the encoder's tokens.
        outputs: numbers a place.
        side: places a side.
        leading: tokens ahead of the places.
    """

    def __init__(self, spec: Decoder, inputs: int, outputs: int, side: int, leading: int) -> None:
        super().__init__()
        self.leading = leading
        self.embed = nn.Linear(inputs, spec.width)
        self.mask = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.register_buffer("positions", torch.empty(1, leading + side**2, spec.width))
        self.positions: Tensor
        if not self.positions.is_meta:  # there is nothing to compute where weights are still to be read
            self.positions.copy_(sine_cosine(side, spec.width, leading))
        self.blocks = nn.ModuleList(TransformerBlock(spec.width, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width, EPSILON)
        self.predict = nn.Linear(spec.width, outputs)

    def hidden(self, latent: Tensor, masking: Masking, *, blocks: int | None = None) -> Tensor:
        """Return the tokens `[n, leading + places, width]` behind the first `blocks` blocks (none: all), without norm.

        `latent` `[n, leading + k, inputs]` is what the encoder's last norm gives.
        """
        tokens = self.embed(latent)
        first, places = tokens[:, : self.leading], tokens[:, self.leading :]
        masks = self.mask.to(tokens.dtype).expand(len(tokens), masking.restore.shape[1] - places.shape[1], -1)
        whole = _gathered(torch.cat([places, masks], 1), masking.restore)
        tokens = torch.cat([first, whole], 1) + self.positions
        for block in self.blocks[:blocks]:
            tokens = block(tokens)
        return tokens

    def forward(self, latent: Tensor, masking: Masking) -> Tensor:
        """Return the guesses `[n, places, outputs]`, row by row."""
        out: Tensor = self.predict(self.norm(self.hidden(latent, masking))[:, self.leading :])
        return out


class MaskedAutoencoder(nn.Module):
    """An encoder and a decoder."""

    def __init__(self, encoder: TokenNetwork, decoder: MaskedDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def latent(self, images: Tensor, masking: Masking) -> Tensor:
        """Return what the decoder reads `[n, leading + k, width]`: the kept places' tokens behind the last norm."""
        out: Tensor = last_norm(self.encoder)(encode(self.encoder, images, masking))
        return out

    def forward(self, images: Tensor, masking: Masking) -> Tensor:
        """Return the guesses `[n, places, outputs]`."""
        out: Tensor = self.decoder(self.latent(images, masking), masking)
        return out


def fresh_autoencoder(
    net: ViT, decoder: Decoder, outputs: int, like: ImageShape, rng: torch.Generator
) -> MaskedAutoencoder:
    """Return encoder and decoder as MAE starts them: Xavier's uniform weights, and waves as positions, which stay.

    The encoder's positions take no gradient until someone asks for one.
    """
    encoder = transformer(nets.fresh(net, like, rng))
    with seeded(rng):
        made = MaskedDecoder(decoder, net.width, outputs, encoder.patches.side, encoder.patches.leading)
        for part in (*encoder.stages, made):
            _xavier(part)
        project = encoder.patches.project
        nn.init.xavier_uniform_(project.weight.data.flatten(1))
        if project.bias is not None:
            nn.init.zeros_(project.bias)
        nn.init.normal_(made.mask, std=STD)
    if encoder.patches.positions is not None:
        waves = sine_cosine(encoder.patches.side, net.width, encoder.patches.leading)
        encoder.patches.positions.data.copy_(waves)
        encoder.patches.positions.requires_grad_(False)
    return MaskedAutoencoder(encoder, made)


def continued(encoder: nn.Module, net: ViT, like: ImageShape, rng: torch.Generator) -> TokenNetwork:
    """Return a network with the trunk of `encoder` behind a new head, and new what it lacks, such as class tokens.

    `net` may differ from the encoder's spec in `pool` alone.
    """
    made = transformer(nets.fresh(net, like, rng))
    old, own = encoder.state_dict(), made.state_dict()
    for name, value in own.items():
        if name.startswith("head.") or name not in old:
            continue
        if name == "patches.positions":
            places = made.patches.side**2
            shared = min(value.shape[1], old[name].shape[1]) - places
            value[:, -places:] = old[name][:, -places:]
            value[:, :shared] = old[name][:, :shared]
        elif name == "patches.learned":
            shared = min(value.shape[1], old[name].shape[1])
            value[:, :shared] = old[name][:, :shared]
        else:
            own[name] = old[name]
    made.load_state_dict(own)
    return made


class MeanFeatures(nn.Module):
    """A transformer whose embedding is the mean of all its tokens, whatever its head reads."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = transformer(encoder)

    def embed(self, images: Tensor) -> Tensor:
        """Return the features `[n, width]`."""
        tokens: Tensor = last_norm(self.encoder)(encode(self.encoder, images))
        return tokens.mean(1)


def transformer(module: nn.Module) -> TokenNetwork:
    """Return a network whose blocks are a transformer's, so that it may read any part of the places.

    Raises:
        AttarError: it is another one.
    """
    if not isinstance(module, TokenNetwork) or not isinstance(module.stages[0], TransformerBlock):
        what = (
            type(module).__name__ if not isinstance(module, Network) else f"{type(module).__name__} without attention"
        )
        raise AttarError(f"a {what} cannot read a part of an image's patches; take a vision transformer (net=vit)")
    return module


def sine_cosine(side: int, width: int, leading: int = 0) -> Tensor:
    """Return fixed positions `[1, leading + side², width]`: waves of row and column, zero for leading tokens.

    A quarter of the channels each for the sine and cosine of the column, then of the row, at frequencies
    10000^(−i / (width / 4)); channels that are left over stay zero (He et al. 2022, arXiv 2111.06377).
    """
    quarter = width // 4
    frequencies = torch.exp(torch.arange(quarter) * (-math.log(WAVES) / max(quarter, 1)))
    waves = torch.arange(side)[:, None] * frequencies
    one = torch.cat([waves.sin(), waves.cos()], 1)  # [side, width / 2]
    column, row = one.repeat(side, 1), one.repeat_interleave(side, 0)
    out = torch.zeros(1, leading + side**2, width)
    out[0, leading:, : 4 * quarter] = torch.cat([column, row], 1)
    return out


def _gathered(tokens: Tensor, indices: Tensor) -> Tensor:
    return tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[2]))


def _xavier(part: nn.Module) -> None:
    for layer in part.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

"""The encoder a label projector stands on: a transformers CLIP, a packaged ImageNet network, or any network of ours."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.artifacts import Student, fingerprint_of, load
from attar.data import Images
from attar.errors import AttarError, RecipeError
from attar.nets import Net, efficientnet
from attar.run import Run
from attar.train.network import TrainNetwork
from attar.train.training import Training

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its training
PROMPT = "a photo of a {}."
PACKAGED = re.compile(r"efficientnet-lite0(?:\?size=(?P<size>[1-9][0-9]{1,3}))?")  # pixels a side that it sees
SHOTS = 20  # images of a class whose mean embedding stands for its name, where there is no text encoder


class Encoder(nn.Module):
    """A frozen map from images `[n, C, S, S]`, in the space networks see, to embeddings `[n, features]`."""

    def directions(self, classes: Sequence[str]) -> Tensor | None:
        """Return an embedding `[classes, features]` of every class's name, of length 1; none without a text encoder."""
        return None

    def layers(self) -> list[nn.Module]:
        """Return the convolutions and linear layers that images go through."""
        raise NotImplementedError(f"{type(self).__name__} does not say which layers images go through")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights."""
        return fingerprint_of(self.state_dict())


class NetworkEncoder(Encoder):
    """The embedding of a trained network of ours."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the input of the network's linear head."""
        embed: Any = self.module.embed
        out: Tensor = embed(images)
        return out

    def layers(self) -> list[nn.Module]:
        """Return all but the network's own head, which no image reaches."""
        return [layer for layer in _weighted(self.module) if layer is not getattr(self.module, "head", None)]


class PictureEncoder(Encoder):
    """An encoder of photographs, which sees pictures in a size and a normalisation of its own.

    Grey images are shown in three equal channels.

    Args:
        like: how images were normalised.
        size: pixels a side that it sees.
        mean: of its training, by channel or one for all, of pixels in [0, 1].
        std: the same for the standard deviation.

    Raises:
        RecipeError: whitened images, or neither one channel nor three.
    """

    def __init__(self, like: Images, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if like.whitening is not None or like.channels not in (1, 3):
            raise RecipeError(
                "this encoder sees pictures of one or three channels that are not whitened; leave ?zca out"
            )
        self.size = size
        for name, values in (("shift", like.mean), ("spread", like.std), ("mean", mean), ("std", std)):
            tensor = torch.as_tensor(values).float().view(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights, and of the size and the normalisation in which it sees pictures."""
        shown = {**dict(self.named_buffers(recurse=False)), "size": torch.tensor(self.size)}
        return fingerprint_of({**self.state_dict(), **shown})

    def pictures(self, images: Tensor) -> Tensor:
        """Return images `[n, C, S, S]` as the encoder was trained to see them, `[n, 3, size, size]`."""
        buffers = dict(self.named_buffers(recurse=False))
        x = (images * buffers["spread"] + buffers["shift"]).expand(-1, 3, -1, -1)
        x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return (x - buffers["mean"]) / buffers["std"]


class PackagedEncoder(PictureEncoder):
    """EfficientNet-Lite0 with the ImageNet weights of a package, trained at 224 pixels a side (arXiv 1905.11946).

    What it costs goes with the square of `size`.

    Raises:
        RecipeError: whitened images, or neither one channel nor three.
        DataError: the package is not installed.
    """

    def __init__(self, like: Images, size: int = efficientnet.SIZE) -> None:
        super().__init__(like, size, [efficientnet.MEAN], [efficientnet.STD])
        self.network = efficientnet.pretrained_efficientnet_lite0().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the input `[n, 1280]` of its linear head."""
        return self.network.embed(self.pictures(images))

    def layers(self) -> list[nn.Module]:
        """Return all but its own head, which no image reaches."""
        return [layer for layer in _weighted(self.network) if layer is not self.network.head]


class ClipEncoder(PictureEncoder):
    """The image tower of a transformers CLIP.

    Args:
        model: a `CLIPModel`.
        tokenizer: turns prompts into `input_ids` and `attention_mask`; none: classes have no names for it.
        like: how images were normalised.

    Raises:
        RecipeError: whitened images, or neither one channel nor three.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, like: Images) -> None:
        clip: Any = model.eval().requires_grad_(False)
        super().__init__(like, int(clip.config.vision_config.image_size), CLIP_MEAN, CLIP_STD)
        self.model, self.tokenizer = clip, tokenizer

    def forward(self, images: Tensor) -> Tensor:
        """Return the projected image features."""
        clip: Any = self.model
        told = clip.get_image_features(pixel_values=self.pictures(images))
        return told if isinstance(told, Tensor) else torch.as_tensor(told.pooler_output)

    def layers(self) -> list[nn.Module]:
        """Return the layers of the image tower and its projection, not those of the text tower."""
        clip: Any = self.model
        return [*_weighted(clip.vision_model), clip.visual_projection]

    @torch.no_grad()
    def directions(self, classes: Sequence[str]) -> Tensor | None:
        """Return the normalised text features of "a photo of a …." for every class."""
        if self.tokenizer is None:
            return None
        words = self.tokenizer([PROMPT.format(name) for name in classes], padding=True, return_tensors="pt")
        clip: Any = self.model
        ids, mask = (words[name].to(clip.device) for name in ("input_ids", "attention_mask"))
        told = clip.get_text_features(input_ids=ids, attention_mask=mask)
        features = told if isinstance(told, Tensor) else torch.as_tensor(told.pooler_output)
        return functional.normalize(features, dim=1)


def _weighted(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def known_encoder(
    run: Run, data: Images, given: Student | str | None, net: Net | None, training: Training
) -> Student | Path | str:
    """Return what the encoder given is (a trained network, the folder of a CLIP, a name), or train a stand-in.

    The stand-in, where `net` says so, tells by how many right angles an image was turned (Gidaris et al. 2018, arXiv
    1803.07728): it has seen images and no labels.

    Raises:
        RecipeError: none was given, and there is no stand-in.
        AttarError: what was given is no encoder.
    """
    if given is not None:
        return read_encoder(given)
    if net is None:
        raise RecipeError(
            "a label projector stands on an encoder: hand one over, encoder=FOLDER of a transformers CLIP or of a "
            "trained network, or encoder=efficientnet-lite0, or set stand_in=convnet to train one without labels"
        )
    made: Student = run.stage("encoder", TrainNetwork(net=net, training=training), data=turned(data))
    return made


def read_encoder(given: Student | str | Path) -> Student | Path | str:
    """Return a trained network as it is or read from its folder, the folder of a transformers CLIP, or a packaged name.

    Raises:
        AttarError: it is none of them.
    """
    if isinstance(given, Student) or (isinstance(given, str) and PACKAGED.fullmatch(given)):
        return given
    folder = Path(given)
    if (folder / "artifact.json").exists() or (folder / "artifact").exists():
        known = load(folder)
        if not isinstance(known, Student):
            raise AttarError(f"input 'encoder' takes a trained network or a CLIP; {folder} holds a {known.kind}")
        return known
    if not (folder / "config.json").exists():
        raise AttarError(
            f"{folder} holds neither a trained network nor a transformers CLIP (no config.json), and is no name of a "
            "packaged encoder: efficientnet-lite0, or efficientnet-lite0?size=96"
        )
    return folder


def encoder_of(known: Student | Path | str, like: Images) -> Encoder:
    """Return the encoder that a trained network, a folder of a CLIP, or a packaged name is for images like these."""
    if isinstance(known, Student):
        return NetworkEncoder(known.module)
    if isinstance(known, str):
        told = PACKAGED.fullmatch(known)
        size = told["size"] if told else None
        return PackagedEncoder(like, int(size or efficientnet.SIZE))
    from transformers import AutoTokenizer, CLIPModel

    words = AutoTokenizer.from_pretrained(known) if (known / "tokenizer.json").exists() else None
    return ClipEncoder(CLIPModel.from_pretrained(known, use_safetensors=True), words, like)


def turned(data: Images) -> Images:
    """Return every image in its four orientations, labelled by the number of right angles."""
    pixels = torch.cat([data.pixels.rot90(turns, (2, 3)) for turns in range(4)])
    labels = torch.arange(4, device=pixels.device).repeat_interleave(len(data))
    names = tuple(f"{90 * turns}°" for turns in range(4))
    if data.whitening is not None:
        raise RecipeError("the stand-in turns pictures, which whitened ones do not survive; leave ?zca out")
    return dataclasses.replace(data, pixels=pixels, labels=labels, classes=names, source=f"turned {data.source}")


@torch.no_grad()
def class_means(encoder: Encoder, data: Images, rng: torch.Generator) -> Tensor:
    """Return `[classes, features]` of length 1: the mean embedding of a few images in the place of a class's name."""
    shots = min(SHOTS, *map(len, data.by_class))
    means = [functional.normalize(encoder(images), dim=1).mean(0) for images in data.per_class(shots, rng)]
    return functional.normalize(torch.stack(means), dim=1)

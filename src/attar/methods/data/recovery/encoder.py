"""The encoder a label projector stands on: a transformers CLIP, or any trained network of ours."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.artifacts import Student, fingerprint_of, load
from attar.data import Images
from attar.errors import AttarError, RecipeError
from attar.nets import Net
from attar.run import Run
from attar.train.network import TrainNetwork
from attar.train.training import Training

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its training
PROMPT = "a photo of a {}."
SHOTS = 20  # images of a class whose mean embedding stands for its name, where there is no text encoder


class Encoder(nn.Module):
    """A frozen map from images `[n, C, S, S]`, in the space networks see, to embeddings `[n, features]`."""

    scale = 10.0  # of the cosines, at the start

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


class ClipEncoder(Encoder):
    """The image tower of a transformers CLIP; grey images are shown in three equal channels, all at its own size.

    Args:
        model: a `CLIPModel`.
        tokenizer: turns prompts into `input_ids` and `attention_mask`; none: classes have no names for it.
        like: how images were normalised.

    Raises:
        RecipeError: whitened images, or neither one channel nor three.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, like: Images) -> None:
        super().__init__()
        if like.whitening is not None or like.channels not in (1, 3):
            raise RecipeError("CLIP sees pictures of one or three channels that are not whitened; leave ?zca out")
        clip: Any = model.eval().requires_grad_(False)
        self.model, self.tokenizer = clip, tokenizer
        self.size, self.scale = int(clip.config.vision_config.image_size), float(clip.logit_scale.exp())
        for name, values in (("shift", like.mean), ("spread", like.std), ("mean", CLIP_MEAN), ("std", CLIP_STD)):
            tensor = torch.as_tensor(values).float().view(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the projected image features."""
        buffers = dict(self.named_buffers(recurse=False))
        x = (images * buffers["spread"] + buffers["shift"]).expand(-1, 3, -1, -1)
        x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        clip: Any = self.model
        told = clip.get_image_features(pixel_values=(x - buffers["mean"]) / buffers["std"])
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
        told = clip.get_text_features(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        features = told if isinstance(told, Tensor) else torch.as_tensor(told.pooler_output)
        return functional.normalize(features, dim=1)


def _weighted(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def known_encoder(
    run: Run, data: Images, given: Student | str | None, net: Net | None, training: Training
) -> Student | Path:
    """Return what the encoder given is (a trained network, or the folder of a CLIP), or train a stand-in.

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
            "trained network, or set stand_in=convnet to train one without labels"
        )
    made: Student = run.stage("encoder", TrainNetwork(net=net, training=training), data=turned(data))
    return made


def read_encoder(given: Student | str | Path) -> Student | Path:
    """Return a trained network as it is or read from its folder, and the folder of a transformers CLIP.

    Raises:
        AttarError: it is neither.
    """
    if isinstance(given, Student):
        return given
    folder = Path(given)
    if (folder / "artifact.json").exists() or (folder / "artifact").exists():
        known = load(folder)
        if not isinstance(known, Student):
            raise AttarError(f"input 'encoder' takes a trained network or a CLIP; {folder} holds a {known.kind}")
        return known
    if not (folder / "config.json").exists():
        raise AttarError(f"{folder} holds neither a trained network nor a transformers CLIP (no config.json)")
    return folder


def encoder_of(known: Student | Path, like: Images) -> Encoder:
    """Return the encoder that a trained network, or a folder of a CLIP, is for images like these."""
    if isinstance(known, Student):
        return NetworkEncoder(known.module)
    from transformers import AutoTokenizer, CLIPModel

    words = AutoTokenizer.from_pretrained(known) if (known / "tokenizer.json").exists() else None
    return ClipEncoder(CLIPModel.from_pretrained(known), words, like)


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

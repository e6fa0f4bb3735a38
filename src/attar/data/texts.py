"""Captions as conditions of generators: a text becomes the embedding that the packaged MiniLM gives it.

Embeddings are computed once and kept under ATTAR_HOME by what they were computed from; a text that nobody has seen
before, such as a prompt that a person types, is embedded when it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from attar import files
from attar.data.captions import Captioned
from attar.data.samples import ImageSamples
from attar.errors import DamagedFile, DataError
from attar.spec import digest

if TYPE_CHECKING:
    from attar.nets.minilm import MiniLM

ENCODER = "minilm"  # the name by which artifacts remember what read their captions
LONGEST = 1000  # letters of a prompt


def text_samples(images: Captioned) -> ImageSamples:
    """Return pictures as samples whose conditions are the embeddings `[384]` of their captions.

    Pictures of one caption share a condition; conditions stand in the order in which captions first come.

    Raises:
        DataError: pictures without captions, whitened ones, or a text encoder that is not installed.
    """
    if not images.captions:
        raise DataError(f"{images.source} has no captions; give a folder with a table of them, or the data 'emoji'")
    captions = list(dict.fromkeys(images.captions))
    places = {caption: place for place, caption in enumerate(captions)}
    which = torch.tensor([places[caption] for caption in images.captions])
    return ImageSamples(images, captions=captions, which=which, vectors=embedded(captions))


def embedded(texts: Sequence[str]) -> Tensor:
    """Return an embedding of every text `[n, 384]`, from the cache where all of them are there together.

    Their mean square is 1: numbers of a twentieth, as vectors of length 1 have them, would be learned slowly.

    Raises:
        DataError: the text encoder is not installed.
    """
    encoder = _encoder()
    key = digest([ENCODER, "mean square 1", encoder.fingerprint, list(texts)])[:40]
    path = files.home() / "texts" / f"{key}.safetensors"
    if path.is_file():
        try:
            kept = files.load_tensors(path).get("embeddings")
            if kept is not None and kept.shape[0] == len(texts):
                return kept
        except DamagedFile:
            path.unlink()
    made = _scaled(encoder(texts))
    files.save_tensors(path, {"embeddings": made})
    return made


def prompts(texts: Sequence[str]) -> Tensor:
    """Return the embeddings `[n, 384]` of texts that a person typed.

    Raises:
        DataError: an empty or endless text, or the text encoder is not installed.
    """
    plain = [" ".join(text.split()) for text in texts]
    for text in plain:
        if not text or len(text) > LONGEST:
            raise DataError(f"a prompt is a text of 1 to {LONGEST} letters; got {len(text)}")
    return _scaled(_encoder()(plain))


def _scaled(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors) * vectors.shape[1] ** 0.5


@cache
def _encoder() -> MiniLM:
    from attar.nets.minilm import pretrained_minilm

    return pretrained_minilm()

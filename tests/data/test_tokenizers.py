"""Texts as ids: known words are a token, others are spelled, and every text ends with its end token."""

import pytest
import tokenizers as library
import torch
from tokenizers import models, pre_tokenizers, processors

from attar.data.tokenizers import END, PAD, SPELLED, START, FileTokenizer, WordTokenizer, rebuilt


def word_file():
    vocabulary = {"[pad]": 0, "<s>": 1, "</s>": 2, "[unk]": 3, "red": 4, "bag": 5}
    made = library.Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return made.to_str()


def test_words_are_numbered_by_frequency_and_unknown_ones_spelled_in_bytes():
    tokenizer = WordTokenizer.of(["the red bag", "the bag", "the hat"])
    first = SPELLED + 256
    assert tokenizer.words == ("the", "bag", "red", "hat")
    assert tokenizer.vocabulary == first + 4
    ids = tokenizer.ids(["The BAG, ü"], 10)[0].tolist()
    assert ids == [
        START,
        first,
        first + 1,
        SPELLED + ord(","),
        *(SPELLED + b for b in "ü".encode()),
        END,
        PAD,
        PAD,
        PAD,
    ]


def test_the_least_frequent_words_are_no_tokens():
    tokenizer = WordTokenizer.of(["a a b"], largest=1)
    assert tokenizer.ids(["b a"], 4).tolist() == [[START, SPELLED + ord("b"), SPELLED + 256, END]]


def test_a_text_too_long_is_cut_and_still_ends():
    tokenizer = WordTokenizer.of(["one two three four"])
    ids = tokenizer.ids(["one two three four", ""], 4)
    assert ids[0].tolist()[-1] == END
    assert ids[0].tolist()[1:3] == tokenizer.ids(["one two"], 4)[0].tolist()[1:3]
    assert ids[1].tolist() == [START, END, PAD, PAD]


def test_a_tokenizer_of_a_file_starts_ends_and_cuts():
    tokenizer = FileTokenizer(word_file(), 2)
    assert tokenizer.vocabulary == 6
    assert tokenizer.ids(["red bag", "red red red red", "blue"], 4).tolist() == [
        [1, 4, 5, 2],
        [1, 4, 4, 2],
        [1, 3, 2, 2],
    ]


@pytest.mark.parametrize("tokenizer", [WordTokenizer(["red", "bag"]), FileTokenizer(word_file(), 2)])
def test_a_tokenizer_comes_back_from_its_json(tokenizer):
    again = rebuilt(tokenizer.about())
    assert torch.equal(again.ids(["red bag!"], 8), tokenizer.ids(["red bag!"], 8))
    assert (again.vocabulary, again.end) == (tokenizer.vocabulary, tokenizer.end)


@pytest.mark.parametrize(
    "about", [{}, {"kind": "words", "words": [3]}, {"kind": "file", "text": "{", "end": 1}, {"kind": "other"}]
)
def test_what_describes_no_tokenizer_is_refused(about):
    with pytest.raises(ValueError, match="tokenizer"):
        rebuilt(about)

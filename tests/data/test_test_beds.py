"""What generators are tested on: points with edges, pictures with texts."""

import pytest
import torch

from attar.data import Samples, captions, texts
from attar.data.checkerboard import Checkerboard
from attar.data.samples import ImageSamples
from attar.errors import DataError


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    """Let a stand-in read texts, as their length and a one; return what it was asked."""
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    asked = []

    class Reader:
        fingerprint = "reader"

        def __call__(self, given):
            asked.append(list(given))
            return torch.tensor([[float(len(text)), 1.0] for text in given])

    monkeypatch.setattr(texts, "_encoder", Reader)
    return asked


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_checkerboard_fills_its_dark_squares_evenly():
    board = Samples.of("checkerboard")
    assert isinstance(board, Checkerboard)
    points, which = board.draw_named(8000, rng())
    assert points.dtype == torch.float32
    assert points.abs().max() <= 2
    squares = points.add(2).floor().clamp(max=3)
    assert bool((squares.sum(1) % 2 == 0).all())  # dark ones alone
    assert torch.equal(board.square_of(points), which)
    assert which.bincount(minlength=8).double() / 1000 == pytest.approx(torch.ones(8).double(), abs=0.1)
    assert points.mean(0).abs().max() < 0.05
    offsets = points - points.floor()
    assert offsets.var(0) == pytest.approx(torch.full((2,), 1 / 12), rel=0.05)


def test_points_beside_the_squares_are_in_none():
    board = Checkerboard()
    points = torch.tensor([[-1.5, -1.5], [-0.5, -1.5], [0.5, -1.5], [-0.5, -0.5], [5.0, 5.0]])
    assert board.square_of(points).tolist() == [0, -1, 1, 2, -1]


def test_captions_are_the_conditions_of_pictures_that_have_some(tiny_images, encoder):
    pictures = captions.captioned(tiny_images(each=2), ["red apple", "dog", "dog", "sun", "dog", "red apple"])
    samples = Samples.of(pictures)
    assert samples.conditions == ("red apple", "dog", "sun")
    assert samples.form.width == 2
    drawn, which = samples.draw_named(40, rng())
    for picture, number in zip(drawn, which, strict=True):
        place = int((pictures.unit() * 2 - 1 - picture).abs().flatten(1).sum(1).argmin())
        assert pictures.captions[place] == samples.conditions[number]
    expected = torch.tensor([[9.0, 1.0], [3.0, 1.0], [0.0, 0.0]]) / torch.tensor([[41.0], [5.0], [1.0]]).sqrt()
    torch.testing.assert_close(samples.condition(torch.tensor([0, 2, -1])), expected)  # mean squares of 1, 1 and 0


def test_embeddings_are_computed_once_and_anew_where_the_cache_is_damaged(encoder, tmp_path):
    first = texts.embedded(["a", "bcd"])
    assert torch.equal(texts.embedded(["a", "bcd"]), first)
    assert encoder == [["a", "bcd"]]
    texts.embedded(["bcd", "a"])  # another order is another table
    assert len(encoder) == 2
    for file in (tmp_path / "home" / "texts").iterdir():
        file.write_bytes(b"damaged")
    assert torch.equal(texts.embedded(["a", "bcd"]), first)
    assert len(encoder) == 3


def test_a_prompt_is_tidied_and_an_empty_one_refused(encoder):
    assert torch.equal(texts.prompts(["  red \n apple "]), texts.prompts(["red apple"]))
    for bad in (" ", "x" * 1001):
        with pytest.raises(DataError, match="1 to 1000 letters"):
            texts.prompts([bad])


def test_pictures_without_captions_are_told_their_classes(tiny_images):
    assert isinstance(Samples.of(tiny_images()), ImageSamples)
    assert Samples.of(tiny_images()).conditions == ("class 0", "class 1", "class 2")

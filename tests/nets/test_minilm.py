"""The packaged text encoder: known cosines, independence of what stands beside, and files that are not it."""

import pytest
import torch

from attar.errors import DamagedFile, DataError
from attar.nets import minilm
from attar.nets.minilm import FEATURES, pretrained_minilm


@pytest.fixture(scope="module")
def encoder():
    return pretrained_minilm()


def test_meaning_is_near_and_the_numbers_are_the_papers_networks(encoder):
    cat, kitten, market = encoder(["a cat sits", "a kitten is sitting", "stock market crash"])
    assert cat.shape == (FEATURES,)
    assert float(cat @ kitten) == pytest.approx(0.7809, abs=2e-4)  # as sentence-transformers computes it
    assert float(cat @ market) == pytest.approx(0.0894, abs=2e-4)


def test_what_stands_beside_a_text_does_not_change_it(encoder):
    texts = ["red apple", "a very long name of a thing that nobody would draw", "dog", "red apple"]
    together = encoder(texts)
    torch.testing.assert_close(together, torch.cat([encoder([text]) for text in texts]), rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    assert torch.equal(encoder(["word " * 300]), encoder(["word " * 400]))  # cut alike


def test_the_global_generator_is_left_alone_and_nothing_learns(encoder):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    again = pretrained_minilm()
    assert torch.equal(torch.rand(1), expected)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.fingerprint == encoder.fingerprint


def test_missing_and_other_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(DataError, match=r"pip install 'attar\[assets\]'"):
        pretrained_minilm()
    folder = tmp_path / "a_text_package" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "PACKAGE", "a_text_package")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DamagedFile, match="does not hold all-MiniLM-L6-v2"):
        pretrained_minilm()

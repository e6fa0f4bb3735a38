"""Losses for long tails: weights by effective numbers and margins for rare classes."""

import pytest
import torch
from torch import nn

from attar.errors import RecipeError
from attar.losses.long_tail import effective_number_weights, margin_cross_entropy, weighted_cross_entropy

COUNTS = torch.tensor([1000, 81, 16])


def test_weights_are_inverse_effective_numbers_with_the_mean_one():
    weights = effective_number_weights(COUNTS, 0.99)
    raw = torch.tensor([(1 - 0.99) / (1 - 0.99**n) for n in (1000, 81, 16)])
    torch.testing.assert_close(weights, raw / raw.mean())
    inverse = 1 / COUNTS.double()
    nearly = effective_number_weights(COUNTS, 1 - 1e-9).double()
    torch.testing.assert_close(nearly, inverse / inverse.mean(), rtol=1e-4, atol=0)
    assert effective_number_weights(COUNTS, 0.0).tolist() == [1, 1, 1]
    with pytest.raises(RecipeError, match="below 1"):
        effective_number_weights(COUNTS, 1.0)


def test_the_weighted_mean_divides_by_the_weights():
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 2])
    weights = torch.tensor([0.2, 1.0, 1.8])
    expected = nn.functional.cross_entropy(logits, labels, weight=weights)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), expected)


def test_margins_shrink_with_the_fourth_root_of_a_class():
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 2])
    margins = torch.tensor([0.5 * (16 / n) ** 0.25 for n in (1000, 81, 16)])
    moved = logits.clone()
    moved[range(6), labels] -= margins[labels]
    found = margin_cross_entropy(logits, labels, COUNTS, largest=0.5, scale=3.0)
    torch.testing.assert_close(found, nn.functional.cross_entropy(3 * moved, labels))
    weights = torch.tensor([0.2, 1.0, 1.8])
    found = margin_cross_entropy(logits, labels, COUNTS, largest=0.5, scale=3.0, weights=weights)
    torch.testing.assert_close(found, nn.functional.cross_entropy(3 * moved, labels, weight=weights))

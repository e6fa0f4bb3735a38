"""Accuracy and calibration error equal values computed by hand."""

import math

import pytest
import torch

from attar.errors import DataError, RecipeError
from attar.metrics import accuracy, expected_calibration_error, negative_log_likelihood


def test_accuracy_is_the_share_of_hits():
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0], [5.0, 4.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0, 0])) == 0.75


def test_a_nan_is_a_miss():
    logits = torch.tensor([[float("nan"), 2.0], [3.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 0])) == 0.5


def test_calibration_error_by_hand():
    # Bins of width 1/2: confidences 0.6, 0.7, 0.9 (two of three right) in the upper one, 0.5 (wrong) in the lower one.
    probabilities = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.5, 0.5]], dtype=torch.double)
    labels = torch.tensor([0, 1, 1, 1])
    expected = 3 / 4 * abs(2 / 3 - 2.2 / 3) + 1 / 4 * 0.5
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx(expected)


def test_gaps_of_opposite_sign_cancel_inside_a_bin_only():
    probabilities = torch.tensor([[0.7, 0.3], [0.9, 0.1]], dtype=torch.double)
    labels = torch.tensor([0, 1])  # +0.3 and −0.9
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(0.3)
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(0.6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    probabilities = torch.tensor([[0.5, 0.5], [0.4, 0.3]], dtype=torch.double)
    probabilities = torch.cat([probabilities, torch.tensor([[0.0], [0.3]], dtype=torch.double)], 1)
    # 0.5 (right: +0.5) and 0.4 (wrong: −0.4) share the lower half and cancel to 0.1.
    assert expected_calibration_error(probabilities, torch.tensor([0, 1]), bins=2) == pytest.approx(0.05)


def test_the_extremes():
    certain = torch.eye(4)
    assert expected_calibration_error(certain, torch.arange(4)) == 0
    assert expected_calibration_error(certain, (torch.arange(4) + 1) % 4) == 1


def test_the_likelihood_of_a_guess_is_that_of_even_odds_and_of_a_known_row_by_hand():
    assert negative_log_likelihood(torch.zeros(3, 4), torch.tensor([0, 1, 2])) == pytest.approx(math.log(4))
    rows = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log() + 3  # a constant a row changes nothing
    expected = -(math.log(0.75) + math.log(0.9)) / 2
    assert negative_log_likelihood(rows, torch.tensor([1, 0])) == pytest.approx(expected, rel=1e-6)


def test_mistakes_are_explained():
    with pytest.raises(DataError, match="labels"):
        accuracy(torch.zeros(3, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match="no sample"):
        accuracy(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    with pytest.raises(DataError, match="softmax"):
        expected_calibration_error(torch.tensor([[2.0, 3.0]]), torch.tensor([0]))
    with pytest.raises(RecipeError, match="bins"):
        expected_calibration_error(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), bins=0)

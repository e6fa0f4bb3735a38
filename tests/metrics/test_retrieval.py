"""Recall: what belongs to a query is among the first k, ties count against, and equal captions are all right."""

import pytest
import torch

from attar.errors import DataError, RecipeError
from attar.metrics import recall_at

SCORES = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8], [0.6, 0.7, 0.1]])
OWN = torch.arange(3)


def test_recall_is_the_share_of_queries_that_find_their_own():
    assert recall_at(SCORES, OWN, OWN, 1) == pytest.approx(1 / 3)
    assert recall_at(SCORES, OWN, OWN, 2) == pytest.approx(2 / 3)
    assert recall_at(SCORES, OWN, OWN, 3) == 1.0


def test_any_candidate_of_the_group_is_right():
    assert recall_at(SCORES, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), 1) == 1.0
    assert recall_at(SCORES, torch.tensor([0, 1, 5]), OWN, 3) == pytest.approx(2 / 3)  # nothing belongs to the last


def test_a_network_that_says_the_same_of_all_finds_nothing():
    assert recall_at(torch.zeros(3, 3), OWN, OWN, 1) == 0.0
    assert recall_at(torch.zeros(3, 3), OWN, OWN, 3) == 1.0


def test_wrong_shapes_and_numbers_are_refused():
    with pytest.raises(DataError, match="expected scores"):
        recall_at(SCORES, OWN[:2], OWN)
    with pytest.raises(DataError, match="NaN"):
        recall_at(SCORES * torch.nan, OWN, OWN)
    with pytest.raises(RecipeError, match="k is at least 1"):
        recall_at(SCORES, OWN, OWN, 0)

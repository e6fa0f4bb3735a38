"""Measures of attention at their limits, and by hand."""

import math

import pytest
import torch

from attar.metrics.attention import attention_distance, attention_information


def test_a_head_that_looks_everywhere_is_as_far_as_the_mean_of_all_pairs():
    uniform = torch.full((2, 1, 4, 4), 0.25)
    expected = (0 + 1 + 1 + math.sqrt(2)) / 4
    assert attention_distance(uniform, 2).item() == pytest.approx(expected, rel=1e-6)
    across = torch.eye(4).flip(0)[None, None]
    assert attention_distance(3 * across, 2).item() == pytest.approx(math.sqrt(2), rel=1e-6)


def test_heads_are_measured_apart():
    both = torch.stack([torch.eye(4), torch.eye(4).flip(0)])[None]
    torch.testing.assert_close(attention_distance(both, 2), torch.tensor([0.0, math.sqrt(2)]))


def test_information_is_nothing_where_all_look_alike_and_whole_where_each_looks_at_its_own():
    alike = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(1, 1, 4, 4)
    assert attention_information(alike).item() == pytest.approx(0, abs=1e-7)
    assert attention_information(torch.eye(4)[None, None]).item() == pytest.approx(1, rel=1e-9)
    halves = torch.block_diag(torch.full((2, 2), 0.5), torch.full((2, 2), 0.5))[None, None]
    assert attention_information(halves).item() == pytest.approx(0.5, rel=1e-9)  # one bit of two

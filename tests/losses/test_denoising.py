"""Distances between samples against values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from attar.errors import RecipeError
from attar.losses.denoising import replaced_gradient, sample_distance

A, B = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)


def test_each_kind_is_its_formula():
    assert sample_distance(A, B, "l2").tolist() == [12.5, 0.0]
    assert sample_distance(A, B, "l1").tolist() == [3.5, 0.0]
    assert sample_distance(A, B, "huber", 12.0).tolist() == pytest.approx([13.0 - 12.0, 0.0])
    element = ((9 + 0.25) ** 0.5 + (16 + 0.25) ** 0.5) / 2 - 0.5
    assert sample_distance(A, B, "huber-element", 0.5).tolist() == pytest.approx([element, 0.0])


def test_the_constant_grows_with_the_root_of_the_sample():
    x = torch.full((1, 3, 32, 32), 0.1)
    c = 0.00054 * math.sqrt(3072)
    want = math.sqrt(30.72 + c * c) - c
    assert float(sample_distance(x, torch.zeros_like(x), "huber")) == pytest.approx(want, rel=1e-6)
    assert c == pytest.approx(0.03, abs=1e-4)


def test_a_replaced_gradient_is_the_gradient():
    x = torch.randn(3, 2, requires_grad=True)
    wanted = torch.tensor([[1.0, -2.0], [float("nan"), 0.5], [float("inf"), 3.0]])
    replaced_gradient(x, wanted).sum().backward()
    assert x.grad.tolist() == pytest.approx(
        [pytest.approx([1.0, -2.0]), pytest.approx([0.0, 0.5]), pytest.approx([0.0, 3.0])]
    )


def test_what_makes_no_sense_is_refused():
    with pytest.raises(RecipeError, match="did you mean 'huber'"):
        sample_distance(A, B, "hubert")
    with pytest.raises(RecipeError, match="one shape"):
        sample_distance(A, B[:, :1], "l2")
    with pytest.raises(RecipeError, match="positive"):
        sample_distance(A, B, "huber", 0.0)

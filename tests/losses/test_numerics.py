"""What the formulas share keeps derivatives at zero and rounding out of directions."""

import pytest
import torch

from attar.errors import RecipeError
from attar.losses.numerics import centred, directions, lengths, paired, weighed


def test_lengths_have_the_gradient_zero_at_zero_and_do_not_overflow():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e30, 4e30], [3e-30, 4e-30]], requires_grad=True)
    values = lengths(vectors)
    torch.testing.assert_close(values, torch.tensor([[5.0], [0.0], [5e30], [5e-30]]))
    values.sum().backward()
    torch.testing.assert_close(vectors.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8], [0.6, 0.8]]))


def test_directions_have_length_one_along_any_dimension_or_stay_zero():
    vectors = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    vectors[:, :, 1] = 0
    unit = directions(vectors, 1)
    torch.testing.assert_close(unit.norm(dim=1), torch.tensor([[1.0, 0, 1, 1]]).double().expand(2, 4))
    assert torch.autograd.gradcheck(lambda v: directions(v, 1), vectors[:, :, 2:].clone().requires_grad_())
    again = vectors.requires_grad_()
    directions(again, 1).sum().backward()
    assert not again.grad[:, :, 1].any()


def test_equal_values_are_centred_to_exact_zeros():
    values = torch.full((7, 3), 0.1)
    values[:, 1] = torch.arange(7.0)
    assert (values - values.mean(0))[:, 0].abs().max() > 0  # what rounding leaves
    result = centred(values, 0)
    assert not result[:, [0, 2]].any()
    torch.testing.assert_close(result[:, 1], torch.arange(-3.0, 4.0))


def test_nothing_times_minus_infinity_is_nothing():
    log = torch.tensor([0.0, -torch.inf], requires_grad=True)
    value = weighed(torch.tensor([0.5, 0.0]), log).sum()
    value.backward()
    assert value.item() == 0
    assert log.grad.tolist() == [0.5, 0.0]


def test_shapes_pair_up_and_half_precision_is_widened():
    a, b = paired(torch.zeros(2, 3, dtype=torch.float16), torch.zeros(2, 3, dtype=torch.double), "features")
    assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
    with pytest.raises(RecipeError, match=r"features need 2 dimensions; got the shape \[2, 3, 1\]"):
        paired(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), "features", dims=(2,))

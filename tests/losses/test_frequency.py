"""High frequencies and edges, by pictures whose spectrum and slope are known."""

import math

import pytest
import torch

from attar.errors import RecipeError
from attar.losses.frequency import edges, high_pass


def wave(cycles, size=16, across=0):
    """A cosine with whole cycles along the rows and across them."""
    place = torch.arange(size, dtype=torch.float64) * 2 * math.pi / size
    return torch.cos(cycles * place[None, :] + across * place[:, None])[None, None]


@pytest.mark.parametrize(("cycles", "stays"), [(1, False), (2, False), (3, True), (6, True), (8, True)])
def test_waves_above_the_cut_stay_whole_and_those_below_go(cycles, stays):
    x = wave(cycles)  # 8 cycles are the Nyquist frequency, 2 are a quarter of it
    torch.testing.assert_close(high_pass(x, 0.25), x if stays else torch.zeros_like(x))


def test_the_frequency_is_that_of_both_directions_together():
    x = wave(2, across=2)  # each at the cut, together above it
    torch.testing.assert_close(high_pass(x, 0.25), x)


def test_a_constant_is_no_detail_and_odd_sides_are_kept():
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(high_pass(x + 5, 0.0), high_pass(x, 0.0))
    torch.testing.assert_close(high_pass(x, 0.0), x - x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("cut", [-0.1, 1.5])
def test_a_cut_outside_the_spectrum_is_refused(cut):
    with pytest.raises(RecipeError, match="Nyquist"):
        high_pass(wave(1), cut)


@pytest.mark.parametrize(("down", "along"), [(1.0, 0.0), (0.0, 1.0), (3.0, 4.0)])
def test_a_ramp_has_the_length_of_its_slope(down, along):
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    x = (down * rows + along * columns)[None, None].repeat(1, 2, 1, 1)
    x[:, 1] *= 2
    inside = edges(x)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside[0, 0], torch.full((4, 4), math.hypot(down, along)))
    torch.testing.assert_close(inside[0, 1], torch.full((4, 4), 2 * math.hypot(down, along)))


def test_flat_pictures_have_no_edges_and_a_gradient_that_is_a_number():
    x = torch.full((1, 1, 5, 5), 0.3, requires_grad=True)
    found = edges(x)
    assert found.max() < 1e-5
    found.sum().backward()
    assert x.grad.isfinite().all()

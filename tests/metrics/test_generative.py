"""Distances between samples against closed forms, exact small cases and their limits."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import energy_distance as energy_on_the_line
from scipy.stats import wasserstein_distance

from attar.errors import DataError, RecipeError
from attar.metrics.generative import (
    endpoint_error,
    energy_distance,
    frechet_distance,
    gaussian_frechet,
    high_frequency_ratio,
    high_frequency_share,
    kernel_distance,
    manifold_scores,
    mode_coverage,
    nearest_modes,
    sliced_wasserstein,
    straightness,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(n, d, seed=0):
    return torch.randn(n, d, generator=rng(seed), dtype=torch.float64)


# --------------------------------------------------------------------------- sliced Wasserstein


def test_a_shift_moves_every_direction_by_its_part():
    x = draws(500, 3)
    shift = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    # E (θᵀs)² = |s|² / D
    assert sliced_wasserstein(x, x + shift, rng(), 20_000) == pytest.approx(5 / math.sqrt(3), rel=0.01)
    assert sliced_wasserstein(x, x[torch.randperm(500)], rng()) == pytest.approx(0, abs=1e-12)


def test_on_the_line_it_is_exact_for_other_numbers_of_samples():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [2.0]])
    # quantiles: [0, ½) 0-0, [½, ⅔) 1-0, [⅔, 1) 1-2
    assert sliced_wasserstein(x, y, rng(), 3) == pytest.approx(math.sqrt(1 / 6 + 1 / 3))
    twice = draws(40, 1)
    assert sliced_wasserstein(twice, twice.repeat(3, 1), rng()) == pytest.approx(0, abs=1e-9)
    # of the second order: for a shift it is the first order's as well, and not below it otherwise
    first = wasserstein_distance(draws(50, 1)[:, 0].numpy(), draws(70, 1, 1)[:, 0].numpy())
    assert sliced_wasserstein(draws(50, 1), draws(70, 1, 1), rng()) >= first


def test_the_same_generator_gives_the_same_directions():
    x, y = draws(50, 4), draws(50, 4, 1)
    assert sliced_wasserstein(x, y, rng(3)) == sliced_wasserstein(x, y, rng(3)) != sliced_wasserstein(x, y, rng(4))


# --------------------------------------------------------------------------- energy


def test_energy_on_the_line_is_scipys_squared():
    x, y = draws(60, 1), 2 * draws(45, 1, 1) + 1
    assert energy_distance(x, y) == pytest.approx(energy_on_the_line(x[:, 0].numpy(), y[:, 0].numpy()) ** 2)
    assert energy_distance(x, x) == 0


def test_energy_of_two_points_is_twice_their_distance():
    assert energy_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])) == pytest.approx(10)


# --------------------------------------------------------------------------- Fréchet


def test_frechet_of_gaussians_is_the_closed_form():
    mean, zero = torch.tensor([1.0, -2.0]), torch.zeros(2)
    diagonal = [torch.diag(torch.tensor(v)) for v in ([4.0, 9.0], [1.0, 1.0])]
    assert gaussian_frechet(mean, diagonal[0], zero, diagonal[1]) == pytest.approx(5 + 1 + 4)
    a, b = draws(4, 4), draws(4, 4, 1)
    first, second = a @ a.T, b @ b.T  # these do not commute
    expected = float(first.trace() + second.trace()) - 2 * np.trace(sqrtm((first @ second).numpy()).real)
    assert gaussian_frechet(torch.zeros(4), first, torch.zeros(4), second) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_are_no_trouble():
    low = draws(8, 1) @ draws(1, 30, 1)  # eight samples on a line in thirty dimensions
    assert frechet_distance(low, low) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(low, low + 1) == pytest.approx(30)


def test_samples_are_fitted_with_the_unbiased_covariance():
    x = torch.tensor([[-1.0], [1.0]])  # variance 2
    y = torch.tensor([[-2.0], [2.0]])  # variance 8
    assert frechet_distance(x, y) == pytest.approx((math.sqrt(8) - math.sqrt(2)) ** 2)


# --------------------------------------------------------------------------- kernel


def test_the_kernel_distance_by_hand():
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    own = (1 * 2 + 1) ** 3
    other = (1 + 1 + (3 + 1) ** 3) * 2 / 6
    across = sum((a * b + 1) ** 3 for a in (1, 2) for b in (0, 1, 3)) / 6
    assert kernel_distance(x, y) == pytest.approx(own + other - 2 * across)
    wide = torch.tensor([[1.0, 1.0], [2.0, 2.0]])  # divided by the dimension: the same kernel
    assert kernel_distance(wide, y.expand(-1, 2)) == pytest.approx(own + other - 2 * across)


def test_the_kernel_distance_has_no_bias():
    values = [kernel_distance(draws(20, 2, seed), draws(20, 2, 1000 + seed)) for seed in range(300)]
    mean, spread = np.mean(values), np.std(values) / math.sqrt(len(values))
    assert abs(mean) < 3 * spread
    assert min(values) < 0


# --------------------------------------------------------------------------- manifolds and modes


def test_manifold_scores_by_hand():
    real = torch.tensor([[0.0], [1.0], [10.0], [11.0]])  # balls of radius 1 with one neighbour
    made = torch.tensor([[0.5], [0.6], [30.0]])  # balls of radius 0.1, 0.1 and 29.4
    told = manifold_scores(real, made, neighbours=1)
    assert told["precision"] == pytest.approx(2 / 3)
    assert told["density"] == pytest.approx((2 + 2 + 0) / 3)
    assert told["coverage"] == pytest.approx(2 / 4)
    assert told["recall"] == pytest.approx(3 / 4)  # all but the one at 0 are within 29.4 of 30


def test_equal_distributions_have_full_scores():
    told = manifold_scores(draws(400, 2), draws(400, 2, 1))
    assert told["density"] == pytest.approx(1, abs=0.1)
    assert min(told["precision"], told["recall"], told["coverage"]) > 0.93
    far = manifold_scores(draws(50, 2), draws(50, 2, 1) + 100)
    assert set(far.values()) == {0.0}


def test_a_mode_counts_with_a_quarter_of_its_fair_share():
    modes = torch.tensor([0] * 73 + [1] * 6 + [2] * 13 + [-1] * 8)  # 25 are fair, 6.25 a quarter
    assert mode_coverage(modes, 4) == pytest.approx(2 / 4)
    assert mode_coverage(modes, 4, least=0.24) == pytest.approx(3 / 4)
    assert mode_coverage(modes, 4, torch.tensor([1.0, 0.1, 1.0, 1.0])) == pytest.approx(3 / 4)


def test_points_out_of_reach_are_of_no_mode():
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    points = torch.tensor([[1.0, 0.0], [6.0, 0.0], [10.0, 3.0]])
    assert nearest_modes(points, means).tolist() == [0, 1, 1]
    assert nearest_modes(points, means, reach=3.5).tolist() == [0, -1, 1]


# --------------------------------------------------------------------------- ways


def test_endpoints_are_compared_one_by_one():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert endpoint_error(x, torch.tensor([[0.0, 2.0], [1.0, 1.0]])) == pytest.approx(1)
    assert endpoint_error(x, x.flip(0)) == pytest.approx(1)


def test_an_even_straight_way_is_straight_on_any_clock():
    times = torch.tensor([1.0, 0.7, 0.1, 0.0])
    begin, end = draws(5, 3), draws(5, 3, 1)
    path = torch.stack([begin + (1 - t) * (end - begin) for t in times.double()])
    assert straightness(path, times) == pytest.approx(0, abs=1e-12)
    assert straightness(path, 80 * times) == pytest.approx(0, abs=1e-12)


def test_bends_by_hand():
    path = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]])
    # the chord goes (1, 1) in a unit of time; each half is (2, 0) or (0, 2), |(1, −1)|² = 2 away from it
    assert straightness(path, torch.tensor([0.0, 0.5, 1.0])) == pytest.approx(2)
    # three quarters at (4/3, 0), one at (0, 4)
    expected = 0.75 * ((1 / 3) ** 2 + 1) + 0.25 * (1 + 9)
    assert straightness(path, torch.tensor([0.0, 0.75, 1.0])) == pytest.approx(expected)
    assert straightness(path, torch.tensor([1.0, 0.25, 0.0])) == pytest.approx(expected)


# --------------------------------------------------------------------------- frequencies


def test_a_wave_is_on_its_side_of_the_cutoff():
    place = torch.arange(16) * (2 * math.pi / 16)
    slow, fast = torch.cos(2 * place), torch.cos(7 * place)  # 1/4 and 7/8 of Nyquist's frequency
    image = (3 * slow[:, None] + 4 * fast[None])[None, None] + 100  # a mean counts for nothing
    assert high_frequency_share(image) == pytest.approx(16 / 25)
    assert high_frequency_share(image, cutoff=0.9) == pytest.approx(0, abs=1e-9)
    assert high_frequency_share(torch.ones(1, 3, 8, 8)) == 0


def test_noise_is_everywhere_and_blur_lowers_the_ratio():
    noise = torch.randn(200, 1, 32, 32, generator=rng())
    assert high_frequency_share(noise) == pytest.approx(1 - math.pi / 16, abs=0.01)
    blurred = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    assert high_frequency_ratio(blurred, noise) < 0.5
    assert high_frequency_ratio(noise, noise) == 1


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="at least 2 samples"):
        frechet_distance(torch.ones(1, 2), torch.ones(5, 2))
    with pytest.raises(DataError, match="one shape"):
        energy_distance(torch.ones(3, 2), torch.ones(3, 3))
    with pytest.raises(DataError, match="diverged"):
        sliced_wasserstein(torch.tensor([[float("nan")]]), torch.ones(1, 1), rng())
    with pytest.raises(DataError, match="one by one"):
        endpoint_error(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(DataError, match="as many rising"):
        straightness(torch.ones(3, 1, 2), torch.tensor([0.0, 1.0, 0.5]))
    with pytest.raises(RecipeError, match="at least one direction"):
        sliced_wasserstein(torch.ones(2, 2), torch.ones(2, 2), rng(), 0)
    with pytest.raises(RecipeError, match="Nyquist"):
        high_frequency_share(torch.ones(1, 1, 4, 4), 2.0)
    with pytest.raises(DataError, match="from −1 to 2"):
        mode_coverage(torch.tensor([3]), 3)

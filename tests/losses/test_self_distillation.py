"""Self-distilled ridge regression: the authors' table, the spectral form, the limit, and the best share."""

import pytest
import torch

from attar.claims.kernel_self_distillation import closed_forms
from attar.errors import RecipeError
from attar.losses.kernels import gaussian_kernel
from attar.losses.ridge import kernel_ridge
from attar.losses.self_distillation import (
    best_share,
    self_distillation_limit,
    self_distilled,
    self_distilled_spectrum,
)

RIDGE = 0.3


@pytest.fixture
def problem():
    rng = torch.Generator().manual_seed(0)
    points, tests = (torch.rand(count, 2, generator=rng, dtype=torch.float64) for count in (7, 5))
    targets = torch.randn(7, 3, generator=rng, dtype=torch.float64)
    return gaussian_kernel(points, points, 4.0), gaussian_kernel(tests, points, 4.0), targets


def test_the_authors_table_is_met_to_its_last_digit():
    found = closed_forms()
    assert max(found[f"table_{share}"] for share in ("0", "0.25", "0.35")) < 1e-5
    assert max(found["spectrum"], found["limit"]) < 1e-8


def test_gaussian_kernels_fall_with_the_squared_distance():
    found = gaussian_kernel(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 0.1)
    torch.testing.assert_close(found, torch.tensor([[-2.5, 0.0]], dtype=torch.float64).exp())


def test_the_first_step_is_plain_regression_whatever_its_share(problem):
    support, cross, targets = problem
    plain = kernel_ridge(support, cross, targets, RIDGE)
    for share in (0.0, 0.4, 1.0):
        torch.testing.assert_close(self_distilled(support, cross, targets, RIDGE, [share])[0], plain)
    always = self_distilled(support, cross, targets, RIDGE, [1.0] * 3)
    torch.testing.assert_close(always, plain.expand(3, -1, -1))


def test_shares_may_differ_from_step_to_step(problem):
    support, _, targets = problem
    shares = [0.5, 0.2, 0.9]
    values, vectors = torch.linalg.eigh(support)
    kept = self_distilled_spectrum(values, RIDGE, shares)
    spectral = vectors @ (kept[..., None] * (vectors.T @ targets))
    torch.testing.assert_close(spectral, self_distilled(support, support, targets, RIDGE, shares))
    a = values / (values + RIDGE)
    torch.testing.assert_close(self_distilled_spectrum(values, RIDGE, [0.0] * 3)[-1], a**3)
    ratio = self_distilled_spectrum(values, RIDGE, [0.0] * 4)
    sparser = ratio[:, 0] / ratio[:, -1]  # the smallest eigenvalue over the largest
    assert (sparser.diff() < 0).all()


def test_without_labels_the_limit_is_nothing_and_with_them_a_wider_ridge(problem):
    support, cross, targets = problem
    assert self_distillation_limit(support, cross, targets, RIDGE, 0.0).abs().max() == 0
    assert self_distilled(support, cross, targets, RIDGE, [0.0] * 400)[-1].abs().max() < 1e-3
    limit = self_distillation_limit(support, cross, targets, RIDGE, 0.4)
    torch.testing.assert_close(limit, kernel_ridge(support, cross, targets, RIDGE / 0.4))
    torch.testing.assert_close(self_distilled(support, cross, targets, RIDGE, [0.4] * 200)[-1], limit)


def test_the_best_share_beats_every_other_and_is_what_fitting_the_mixture_gives(problem):
    support, cross, targets = problem
    truth = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, second = self_distilled(support, cross, targets, RIDGE, [1.0, 0.0])
    share = best_share(truth, first, second, clip=False)

    def error(a):
        return (a * first + (1 - a) * second - truth).square().sum()

    assert error(share) < min(error(share + 0.01), error(share - 0.01))
    inside = min(max(share, 0.0), 1.0)
    assert best_share(truth, first, second) == inside
    mixed = self_distilled(support, cross, targets, RIDGE, [1.0, 0.3])[1]
    torch.testing.assert_close(mixed, 0.3 * first + 0.7 * second)
    assert best_share(truth, first, first) == 1.0
    assert best_share(3 * first - 2 * second, first, second) == 1.0


def test_shares_outside_the_interval_are_refused(problem):
    with pytest.raises(RecipeError, match="between 0 and 1"):
        self_distilled(*problem, RIDGE, [1.5])

"""Ridge regression: by hand, against the dense inverse, limits, gradients, label solve and the margin of labels."""

import pytest
import torch
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses.ridge import centred_one_hot, kernel_ridge, label_margin, solved_labels, squared_error


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def problem():
    """Kernels of ten features, five support points and seven others."""
    support, others, targets = rand(5, 10), rand(7, 10, seed=1), rand(5, 3, seed=2)
    return support @ support.T, others @ support.T, targets


def test_one_point_by_hand():
    """k = 4, cross = 2, y = 3, ridge = 1: 2 · 3 / 5."""
    got = kernel_ridge(torch.tensor([[4.0]]), torch.tensor([[2.0]]), torch.tensor([[3.0]]), 1.0)
    assert got.tolist() == [[pytest.approx(1.2)]]
    assert got.dtype == torch.float64


def test_predictions_are_those_of_the_dense_inverse(problem):
    support, cross, targets = problem
    expected = cross @ torch.linalg.inv(support + 0.3 * torch.eye(5)) @ targets
    torch.testing.assert_close(kernel_ridge(support, cross, targets, 0.3), expected)


def test_without_ridge_the_support_is_fitted_and_with_much_all_predictions_vanish(problem):
    support, cross, targets = problem
    torch.testing.assert_close(kernel_ridge(support, support, targets, 1e-12), targets)
    much = kernel_ridge(support, cross, targets, 1e9)
    torch.testing.assert_close(1e9 * much, cross @ targets, rtol=1e-6, atol=1e-6)


def test_two_points_at_one_place_predict_the_mean_of_their_targets():
    kernel = torch.ones(2, 2)
    got = kernel_ridge(kernel, torch.ones(1, 2), torch.tensor([[1.0], [3.0]]), 1e-6)
    assert float(got) == pytest.approx(2.0, abs=1e-5)


def test_gradients_flow_to_kernels_targets_and_ridge(problem):
    support, cross, targets = (x.requires_grad_() for x in problem)
    ridge = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def predictions(support, cross, targets, ridge):
        return kernel_ridge((support + support.T) / 2, cross, targets, ridge)

    assert torch.autograd.gradcheck(predictions, (support, cross, targets, ridge))


def test_a_kernel_that_float32_cannot_factor_is_solved():
    """Forty nearly equal points with a ridge of a millionth of the mean diagonal: float32 loses it in rounding."""
    points = 100 + 1e-3 * rand(40, 3)
    kernel = points @ points.T
    got = kernel_ridge(kernel, kernel, rand(40, 1, seed=3), 1e-6 * kernel.diagonal().mean())
    assert torch.isfinite(got).all()
    assert torch.linalg.cholesky_ex((kernel + 1e-11 * kernel.diagonal().mean() * torch.eye(40)).float())[1] != 0


def test_a_kernel_that_is_not_positive_definite_gives_nan():
    assert kernel_ridge(-torch.eye(2), torch.ones(1, 2), torch.ones(2, 1), 0.5).isnan().all()
    assert kernel_ridge(torch.full((2, 2), torch.nan), torch.ones(1, 2), torch.ones(2, 1), 0.5).isnan().all()


@pytest.mark.parametrize(("cross", "targets"), [((7, 4), (5, 3)), ((7, 5), (4, 3)), ((7, 5), (5,))])
def test_shapes_that_do_not_fit_are_refused(cross, targets):
    with pytest.raises(RecipeError, match=r"takes kernels \[n, n\]"):
        kernel_ridge(torch.eye(5), torch.ones(cross), torch.ones(targets), 1.0)


def test_solved_labels_predict_better_than_any_others(problem):
    support, cross, _ = problem
    wanted = rand(7, 3, seed=4)
    best = solved_labels(support, cross, wanted, 0.3)

    def error(labels):
        return float((kernel_ridge(support, cross, labels, 0.3) - wanted).square().sum())

    assert best.shape == (5, 3)
    for seed in range(20):
        assert error(best) < error(best + 1e-3 * rand(5, 3, seed=seed))


def test_solved_labels_recover_those_that_made_the_predictions(problem):
    support, cross, targets = problem
    made = kernel_ridge(support, cross, targets, 0.3)
    torch.testing.assert_close(solved_labels(support, cross, made, 0.3), targets)


def test_of_many_solutions_the_shortest_is_taken():
    """Two equal support points predict a quarter of the sum of their labels, so 8 and 8 give 4, as 16 and 0 would."""
    got = solved_labels(torch.ones(2, 2), torch.ones(1, 2), torch.tensor([[4.0]]), 2.0)
    torch.testing.assert_close(got, torch.full((2, 1), 8.0, dtype=torch.float64))


def test_errors_are_halved_summed_over_outputs_and_averaged_over_rows():
    predictions, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    assert squared_error(predictions, targets, reduction="none").tolist() == [2.5, 8.0]
    assert float(squared_error(predictions, targets)) == 5.25
    assert float(squared_error(predictions, targets, reduction="sum")) == 10.5


def test_the_margin_counts_up_to_one_over_the_number_of_classes():
    labels = torch.tensor([[0.5, 0.4, 0.0, 0.0], [0.9, 0.1, 0.2, 0.0]], requires_grad=True)
    margin = label_margin(labels)
    assert float(margin.detach()) == pytest.approx(-(0.1 + 0.25) / 2)
    margin.backward()
    assert labels.grad.tolist() == [[-0.5, 0.5, 0.0, 0.0], [0.0] * 4]


def test_centred_labels_have_no_sum_and_a_length_of_one_less_one_over_the_classes():
    labels = torch.tensor([2, 0, 1])
    got = centred_one_hot(labels, 4)
    assert got[0].tolist() == [-0.25, -0.25, 0.75, -0.25]
    torch.testing.assert_close(got.sum(1), torch.zeros(3))
    torch.testing.assert_close(got.square().sum(1), torch.full((3,), 0.75))
    assert torch.equal(got + 0.25, functional.one_hot(labels, 4).float())

"""Losses between relations equal hand-computed values and plain loops, and keep to the motions they must not see."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses import (
    channel_correlation_distance,
    correlation_congruence,
    linear_cka,
    probability_transfer,
    relational_angle,
    relational_distance,
    similarity_distance,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def rows(*values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.double)


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(randn(size, size, seed=7))[0]


def test_similarity_by_hand():
    student = rows((1, 0), (0, 1))  # Gram: the identity, rows of length 1
    teacher = rows((1, 0), (3, 4))  # Gram ((1, 3), (3, 25)), rows (1, 3)/√10 and (3, 25)/√634
    gap = [1 - 1 / math.sqrt(10), 3 / math.sqrt(10), 3 / math.sqrt(634), 1 - 25 / math.sqrt(634)]
    assert similarity_distance(student, teacher).item() == pytest.approx(sum(g * g for g in gap) / 4)


def test_similarity_flattens_maps_and_forgets_rotation_and_scale():
    student, teacher = randn(5, 3, 4, 4), randn(5, 7, seed=1)
    value = similarity_distance(student, teacher)
    torch.testing.assert_close(similarity_distance(-3 * student.flatten(1) @ rotation(48), teacher), value)
    assert similarity_distance(student, 2 * student).item() < 1e-20


def test_relational_distance_by_hand():
    student = rows((0,), (1,), (3,))  # distances 1, 2, 3: mean 2
    teacher = rows((0, 0), (3, 4), (0, 0.0))  # distances 5, 5 and 0, which is not positive: mean 5
    pairs = [(0.5, 1.0), (1.0, 1.0), (1.5, 0.0)]  # 01, 12, 02 in units of the means
    huber = [0.125, 0.0, 1.5 - 0.5]
    assert all(
        h == (0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5)
        for h, (a, b) in zip(huber, pairs, strict=True)
    )
    assert relational_distance(student, teacher).item() == pytest.approx(2 * sum(huber) / 9)


def test_relational_angle_by_a_plain_loop():
    student, teacher = randn(4, 3), randn(4, 5, seed=1)

    def cosine(f: torch.Tensor, i: int, j: int, k: int) -> torch.Tensor:
        return functional.normalize(f[i] - f[j], dim=0) @ functional.normalize(f[k] - f[j], dim=0)

    triples = itertools.product(range(4), repeat=3)
    terms = [functional.smooth_l1_loss(cosine(student, *t), cosine(teacher, *t)) for t in triples]
    torch.testing.assert_close(relational_angle(student, teacher), torch.stack(terms).mean())


def test_relational_angle_by_hand():
    right, flat = rows((0, 0), (1, 0), (0, 1)), rows((0.0,), (1.0,), (2.0,))
    # cosines of unordered angles at the three points: 0, √½, √½ against 1, −1, 1 (other triples agree)
    gaps = [1, 1 + math.sqrt(0.5), 1 - math.sqrt(0.5)]
    huber = [0.5 * g * g if g < 1 else g - 0.5 for g in gaps]
    assert relational_angle(right, flat).item() == pytest.approx(2 * sum(huber) / 27)


@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_relations_of_points_forget_rigid_motion_mirrors_and_scale(loss):
    student, teacher = randn(5, 4), randn(5, 6, seed=1)
    moved = 3 * student @ rotation(4) + randn(1, 4, seed=2)
    torch.testing.assert_close(loss(moved, teacher), loss(student, teacher))
    torch.testing.assert_close(loss(-moved, teacher), loss(student, teacher))
    assert abs(loss(moved, student).item()) < 1e-12
    stretched = student * rows((1, 1, 1, 5))
    assert (loss(stretched, teacher) - loss(student, teacher)).abs() > 1e-4


def test_probability_transfer_by_hand():
    student = rows((1, 0), (0, 1))  # kernels (1, ½) and (½, 1): rows (2/3, 1/3) and (1/3, 2/3)
    teacher = rows((1, 0), (-2, 0))  # kernels (1, 0) and (0, 1)
    expected = 2 * math.log(1 / (2 / 3)) / 4
    assert probability_transfer(student, teacher).item() == pytest.approx(expected, abs=1e-5)


def test_probability_transfer_by_a_plain_formula_and_forgets_lengths():
    student, teacher = randn(5, 4), randn(5, 6, seed=1)

    def probabilities(features: torch.Tensor) -> torch.Tensor:
        kernel = (functional.cosine_similarity(features[:, None], features[None], dim=2) + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    p, q = probabilities(teacher), probabilities(student)
    value = probability_transfer(student, teacher)
    torch.testing.assert_close(value, (p * (p / q).log()).mean(), rtol=1e-5, atol=1e-8)
    lengths = randn(5, 1, seed=2).exp()
    torch.testing.assert_close(probability_transfer(lengths * student @ rotation(4), teacher), value)


def test_probability_transfer_is_finite_where_one_side_excludes_a_partner():
    student = rows((1, 0), (-1, 0)).requires_grad_()
    value = probability_transfer(student, rows((1, 0), (0, 1)))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_correlation_congruence_by_hand():
    student, teacher = rows((1, 2), (3, -1), (0, 5)), rows((0, 0), (1, 1), (0, 2))
    # |δ| = (1, 2), (2, 2), (0, 3)
    torch.testing.assert_close(
        correlation_congruence(student, teacher, reduction="none"), torch.tensor([6.0, 6.0]).double()
    )
    assert correlation_congruence(student, teacher).item() == 6.0
    inputs = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(correlation_congruence, inputs)


def test_correlation_congruence_of_one_sample_is_zero_with_gradient_zero():
    student = rows((1, 2)).requires_grad_()
    value = correlation_congruence(student, rows((0, 0)))
    value.backward()
    assert value.item() == 0
    assert not student.grad.any()
    assert correlation_congruence(student, rows((0, 0)), reduction="none").shape == (0,)


def test_channel_correlation_by_hand():
    student = rows((1, 0), (0, 1))[None]  # two channels, two places: the identity
    teacher = rows((1, 0), (3, 4))[None]
    gap = [1 - 1 / math.sqrt(10), 3 / math.sqrt(10), 3 / math.sqrt(634), 1 - 25 / math.sqrt(634)]
    assert channel_correlation_distance(student, teacher).item() == pytest.approx(sum(g * g for g in gap) / 2)


def test_channel_correlation_forgets_places_and_scale_but_not_the_order_of_channels():
    student, teacher = randn(2, 3, 4, 4), randn(2, 3, 5, 2, seed=1)
    value = channel_correlation_distance(student, teacher)
    turned = 3 * student.flatten(2) @ rotation(16)
    torch.testing.assert_close(channel_correlation_distance(turned, teacher), value)
    assert (channel_correlation_distance(student.flip(1), teacher) - value).abs() > 1e-3


def test_cka_by_hand():
    # centred x = (−1, 0, 1), y = (−1, 2, −1) are orthogonal, x and z = (−2, 1, 1) have cosine 3/√12
    x, y, z = rows((0,), (1,), (2,)), rows((4,), (7,), (4,)), rows((0,), (3,), (3,))
    assert linear_cka(x, y).item() == pytest.approx(0, abs=1e-12)
    assert linear_cka(x, z).item() == pytest.approx(9 / 12)


@pytest.mark.parametrize(("n", "wide"), [(30, 4), (6, 20)])  # by features, and by samples
@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_forgets_rotation_scale_and_shift_and_is_one_for_equals(n, wide, unbiased):
    x, y = randn(n, wide), randn(n, wide + 1, seed=1)
    value = linear_cka(x, y, unbiased=unbiased)
    turned = -5 * x @ rotation(wide) + randn(1, wide, seed=2)
    torch.testing.assert_close(linear_cka(turned, y, unbiased=unbiased), value)
    torch.testing.assert_close(linear_cka(y, x, unbiased=unbiased), value)
    assert linear_cka(turned, x, unbiased=unbiased).item() == pytest.approx(1)
    stretched = x * torch.linspace(1, 9, wide, dtype=torch.double)
    assert (linear_cka(stretched, y, unbiased=unbiased) - value).abs() > 1e-4


@pytest.mark.parametrize(("n", "wide"), [(30, 4), (6, 20)])
def test_cka_is_its_formula_and_has_right_derivatives(n, wide):
    x, y = randn(n, wide), randn(n, wide + 1, seed=1)
    a, b = (side - side.mean(0) for side in (x, y))
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    torch.testing.assert_close(linear_cka(x, y), expected)
    inputs = x[:5, :4].clone().requires_grad_(), y[:5, :3].clone().requires_grad_()
    for unbiased in (False, True):
        assert torch.autograd.gradcheck(lambda x, y, u=unbiased: linear_cka(x, y, unbiased=u), inputs)


def test_unbiased_cka_of_unrelated_features_is_around_zero_where_the_biased_one_is_not():
    pairs = [(randn(8, 50, seed=s), randn(8, 50, seed=100 + s)) for s in range(60)]
    biased, unbiased = (torch.stack([linear_cka(x, y, unbiased=u) for x, y in pairs]).mean() for u in (False, True))
    assert biased > 0.6
    assert abs(unbiased) < 0.05


def test_unbiased_hsic_is_the_mean_over_tuples_of_distinct_samples():
    x, y = randn(5, 3), randn(5, 2, seed=1)
    k, m = x @ x.T, y @ y.T
    tuples = list(itertools.permutations(range(5), 4))  # Gretton et al.: the U-statistic over four distinct samples

    def hsic(k: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in tuples]
        return torch.stack(terms).mean()

    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    torch.testing.assert_close(linear_cka(x, y, unbiased=True), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cka_holds_in_half_precision_and_for_features_that_do_not_vary(dtype):
    x, y = (1e4 * randn(6, 40, seed=s).clamp(-5, 5) for s in (0, 1))
    x, y = x.to(dtype).requires_grad_(), y.to(dtype)
    value = linear_cka(x, y)
    torch.testing.assert_close(value.double(), linear_cka(x.double(), y.double()), rtol=1e-4, atol=0)
    assert torch.autograd.grad(value, x)[0].isfinite().all()
    for n in (1, 6):
        constant = torch.full((n, 40), 0.1, requires_grad=True)
        value = linear_cka(constant, y[:n].float())
        value.backward()
        assert value.item() == 0
        assert not constant.grad.any()


def test_mistakes_are_explained():
    with pytest.raises(RecipeError, match=r"for the same n samples; got \[4, 3\] and \[5, 3\]"):
        similarity_distance(randn(4, 3), randn(5, 3))
    with pytest.raises(RecipeError, match=r"\[n, …\] for the same n samples; got \[4\] and \[4, 3\]"):
        relational_angle(randn(4), randn(4, 3))
    with pytest.raises(RecipeError, match="same n and channels"):
        channel_correlation_distance(randn(2, 3, 4), randn(2, 4, 4))
    with pytest.raises(RecipeError, match="four samples or more; got 3"):
        linear_cka(randn(3, 4), randn(3, 4), unbiased=True)
    with pytest.raises(RecipeError, match="embeddings of student and teacher need one shape"):
        correlation_congruence(randn(4, 3), randn(4, 2))


@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_near_points_far_from_the_origin_keep_their_distances_in_single_precision(loss):
    student, teacher = ((1e3 + side).float() for side in (randn(30, 4), randn(30, 4, seed=1)))
    torch.testing.assert_close(
        loss(student, teacher).double(), loss(student.double(), teacher.double()), rtol=1e-5, atol=0
    )

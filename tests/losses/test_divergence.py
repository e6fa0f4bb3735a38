"""Cross-entropies and divergences equal closed forms, limits and identities, and hold in half precision."""

import math

import pytest
import torch
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses import (
    alpha_divergence,
    balanced_kl,
    cross_entropy,
    jensen_shannon,
    kl_divergence,
    reverse_kl,
    skewed_kl,
    soft_cross_entropy,
    symmetric_kl,
    total_variation,
)

LOGITS = torch.tensor([[math.log(1.0), math.log(3.0)], [math.log(4.0), math.log(1.0)]])  # (1/4, 3/4) and (4/5, 1/5)
LABELS = torch.tensor([1, 1])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_cross_entropy_by_hand_under_every_reduction():
    each = torch.tensor([math.log(4 / 3), math.log(5)])
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS, reduction="none"), each)
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), each.mean())
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS, reduction="sum"), each.sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_a_soft_target(smoothing):
    logits, labels = randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    target = (1 - smoothing) * functional.one_hot(labels, 5).double() + smoothing / 5
    torch.testing.assert_close(
        cross_entropy(logits, labels, label_smoothing=smoothing), soft_cross_entropy(logits, target)
    )
    torch.testing.assert_close(
        cross_entropy(logits, labels, label_smoothing=smoothing),
        functional.cross_entropy(logits, labels, label_smoothing=smoothing),
    )


def test_labels_of_any_leading_shape():
    logits, labels = randn(2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])
    torch.testing.assert_close(
        cross_entropy(logits, labels, reduction="none").flatten(),
        cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none"),
    )


def test_kl_by_hand():
    teacher = torch.tensor([[math.log(1.0), math.log(1.0)]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(LOGITS[:1], teacher).item() == pytest.approx(expected, rel=1e-5)


def test_kl_is_cross_entropy_less_the_teachers_entropy():
    student, teacher = randn(4, 6), randn(4, 6, seed=1)
    p = teacher.softmax(-1)
    torch.testing.assert_close(
        kl_divergence(student, teacher), soft_cross_entropy(student, p) - soft_cross_entropy(teacher, p)
    )


def test_kl_is_zero_only_at_shifted_copies_and_positive_elsewhere():
    logits = randn(4, 6)
    assert abs(kl_divergence(logits + 3.0, logits).item()) < 1e-12
    assert (kl_divergence(logits, randn(4, 6, seed=1), reduction="none") > 0).all()


def test_temperature_divides_the_logits_and_its_square_scales_the_loss():
    student, teacher = randn(4, 6), randn(4, 6, seed=1)
    plain = kl_divergence(student / 4, teacher / 4)
    torch.testing.assert_close(kl_divergence(student, teacher, 4.0), 16 * plain)
    torch.testing.assert_close(kl_divergence(student, teacher, 4.0, scale_by_temperature_squared=False), plain)


def test_hot_scaled_kl_tends_to_the_squared_distance_of_centred_logits():
    student, teacher = randn(4, 6), randn(4, 6, seed=1)
    gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = gap.square().sum(-1).mean() / (2 * 6)  # Hinton et al. 2015, equation 4
    torch.testing.assert_close(kl_divergence(student, teacher, 1e4), limit, rtol=1e-3, atol=0)


def test_gradients_pass_finite_differences_on_both_sides():
    student, teacher = randn(3, 4).requires_grad_(), randn(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: kl_divergence(s, t, 2.0), (student, teacher))
    assert torch.autograd.gradcheck(lambda s: soft_cross_entropy(s, randn(3, 4).softmax(-1)), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_loses_the_tail(dtype):
    logits = torch.tensor([[3e4, -3e4, 0.0]], dtype=dtype)
    labels = torch.tensor([1])
    wide = logits.double()
    for loss, expected in (
        (cross_entropy(logits, labels), cross_entropy(wide, labels)),
        (kl_divergence(logits, -logits, 0.1), kl_divergence(wide, -wide, 0.1)),
        (soft_cross_entropy(logits, logits.softmax(-1)), soft_cross_entropy(wide, wide.softmax(-1))),
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_impossible_classes_weigh_nothing_and_leave_gradients_finite():
    mask = torch.tensor([0.0, 0.0, -math.inf])
    student, teacher = (randn(2, 3) + mask).requires_grad_(), (randn(2, 3, seed=1) + mask).requires_grad_()
    expected = kl_divergence(student[:, :2], teacher[:, :2])
    loss = kl_divergence(student, teacher)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()
    soft = soft_cross_entropy(student, teacher.detach().softmax(-1))
    torch.testing.assert_close(soft, soft_cross_entropy(student[:, :2], teacher.detach()[:, :2].softmax(-1)))


def test_mistakes_are_explained():
    with pytest.raises(RecipeError, match="did you mean 'mean'"):
        cross_entropy(LOGITS, LABELS, reduction="meen")
    with pytest.raises(RecipeError, match="temperature must be positive"):
        kl_divergence(LOGITS, LOGITS, 0.0)
    with pytest.raises(RecipeError, match="between 0 and 1"):
        cross_entropy(LOGITS, LABELS, label_smoothing=1.5)


QUARTER = torch.tensor([[math.log(1.0), math.log(3.0)]], dtype=torch.double)  # (1/4, 3/4)
HALF = torch.zeros(1, 2, dtype=torch.double)  # (1/2, 1/2)
FORWARD = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)  # KL(half ‖ quarter)
REVERSE = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)  # KL(quarter ‖ half)
SCALED = [  # every divergence that takes the factor T², and the curvature at the teacher: D ≈ c/2 · ‖gap‖² / classes
    (kl_divergence, {}, 1.0),
    (reverse_kl, {}, 1.0),
    (symmetric_kl, {}, 1.0),
    (jensen_shannon, {"beta": 0.3}, 0.3 * 0.7),
    (skewed_kl, {"skew": 0.1}, 0.9**2),
    (alpha_divergence, {"alpha": 0.4}, 1.0),
]


def test_divergences_by_hand():
    close = {"rel": 1e-12}
    assert kl_divergence(QUARTER, HALF).item() == pytest.approx(FORWARD, **close)
    assert reverse_kl(QUARTER, HALF).item() == pytest.approx(REVERSE, **close)
    assert symmetric_kl(QUARTER, HALF).item() == pytest.approx((FORWARD + REVERSE) / 2, **close)
    assert total_variation(QUARTER, HALF).item() == pytest.approx(0.25, **close)
    # β = 0.2: m = 0.2 · (1/2, 1/2) + 0.8 · (1/4, 3/4) = (0.3, 0.7)
    teacher = 0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.7)
    student = 0.25 * math.log(0.25 / 0.3) + 0.75 * math.log(0.75 / 0.7)
    assert jensen_shannon(QUARTER, HALF, beta=0.2).item() == pytest.approx(0.2 * teacher + 0.8 * student, **close)
    assert skewed_kl(QUARTER, HALF, skew=0.2).item() == pytest.approx(teacher, **close)
    assert skewed_kl(HALF, QUARTER, skew=0.8).item() == pytest.approx(student, **close)
    # α = 2: half of χ² = Σ p²/q − 1 = (1/4)/(1/4) + (1/4)/(3/4) − 1 = 1/3; α = ½: 4 (1 − Σ √(p q))
    assert alpha_divergence(QUARTER, HALF, alpha=2.0).item() == pytest.approx(1 / 6, **close)
    affinity = math.sqrt(1 / 8) + math.sqrt(3 / 8)
    assert alpha_divergence(QUARTER, HALF, alpha=0.5).item() == pytest.approx(4 * (1 - affinity), **close)


def test_alpha_divergence_tends_to_both_kls_and_mirrors_around_one_half():
    student, teacher = randn(4, 6), randn(4, 6, seed=1)
    for alpha, limit in ((1.0, kl_divergence(student, teacher)), (0.0, reverse_kl(student, teacher))):
        torch.testing.assert_close(alpha_divergence(student, teacher, alpha=alpha), limit)
        for near in (alpha - 1e-5, alpha + 1e-5):
            torch.testing.assert_close(alpha_divergence(student, teacher, alpha=near), limit, rtol=1e-4, atol=0)
    for alpha in (-0.5, 0.3, 1.7):
        mirrored = alpha_divergence(teacher, student, alpha=1 - alpha)
        torch.testing.assert_close(alpha_divergence(student, teacher, alpha=alpha), mirrored)


def test_jensen_shannon_over_its_share_tends_to_the_kl_of_that_end():
    student, teacher = randn(4, 6), randn(4, 6, seed=1)
    for beta, share, limit in ((1e-6, 1e-6, kl_divergence), (1 - 1e-6, 1e-6, reverse_kl)):
        value = jensen_shannon(student, teacher, beta=beta) / share
        torch.testing.assert_close(value, limit(student, teacher), rtol=1e-4, atol=0)
    torch.testing.assert_close(jensen_shannon(student, teacher, beta=0.3), jensen_shannon(teacher, student, beta=0.7))


def test_jensen_shannon_and_skewed_kl_are_bounded_where_supports_are_disjoint():
    student, teacher = torch.tensor([[0.0, -math.inf, 0.0]]), torch.tensor([[-math.inf, 0.0, -math.inf]])
    student.requires_grad_()
    assert jensen_shannon(student, teacher).item() == pytest.approx(math.log(2), rel=1e-6)
    assert skewed_kl(student, teacher, skew=0.1).item() == pytest.approx(-math.log(0.1), rel=1e-6)
    assert total_variation(student, teacher).item() == pytest.approx(1.0)
    assert alpha_divergence(student, teacher, alpha=0.5).item() == pytest.approx(4.0)
    jensen_shannon(student, teacher).backward()
    assert student.grad.isfinite().all()


def test_reverse_kl_has_the_gradient_with_the_students_entropy_in_it():
    student, teacher = randn(3, 5).requires_grad_(), randn(3, 5, seed=1)
    each = reverse_kl(student, teacher, reduction="none")
    (gradient,) = torch.autograd.grad(each.sum(), student)
    q, gap = student.softmax(-1), student.log_softmax(-1) - teacher.log_softmax(-1)
    torch.testing.assert_close(gradient, q * (gap - each[:, None]))


@pytest.mark.parametrize(("loss", "options", "curvature"), SCALED)
def test_t_squared_keeps_the_gradient_at_high_temperatures(loss, options, curvature):
    student, teacher = randn(4, 6).requires_grad_(), randn(4, 6, seed=1)
    gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = curvature * gap.detach() / (6 * 4)  # of the mean over four samples
    for temperature in (1e3, 1e4):
        (gradient,) = torch.autograd.grad(loss(student, teacher, temperature, **options), student)
        torch.testing.assert_close(gradient, limit, rtol=1e-2, atol=1e-4)
    plain = loss(student, teacher, 3.0, scale_by_temperature_squared=False, **options)
    torch.testing.assert_close(loss(student, teacher, 3.0, **options), 9 * plain)
    torch.testing.assert_close(loss(student / 3, teacher / 3, **options), plain)


@pytest.mark.parametrize(("loss", "options", "curvature"), [*SCALED, (total_variation, {}, 0)])
def test_a_class_excluded_on_both_sides_is_no_class(loss, options, curvature):
    mask = torch.tensor([0.0, 0.0, -math.inf])
    for others in (mask, torch.tensor([0.0, -math.inf, -math.inf])):  # two classes left, and one
        student, teacher = (randn(2, 3) + others).requires_grad_(), (randn(2, 3, seed=1) + others).requires_grad_()
        left = int((others == 0).sum())
        value = loss(student, teacher, 2.0, **options)
        torch.testing.assert_close(value, loss(student[:, :left], teacher[:, :left], 2.0, **options))
        value.backward()
        assert student.grad.isfinite().all()
        assert teacher.grad.isfinite().all()


def test_a_divergence_refuses_what_it_has_no_value_for():
    for beta in (0.0, 1.0, -0.5):
        with pytest.raises(RecipeError, match="beta lies between 0 and 1"):
            jensen_shannon(QUARTER, HALF, beta=beta)
    with pytest.raises(RecipeError, match="skew lies between 0"):
        skewed_kl(QUARTER, HALF, skew=1.0)
    with pytest.raises(RecipeError, match="finite number; got inf"):
        alpha_divergence(QUARTER, HALF, alpha=math.inf)
    with pytest.raises(RecipeError, match="temperature must be positive; got -1"):
        reverse_kl(QUARTER, HALF, -1.0)
    with pytest.raises(RecipeError, match=r"logits of student and teacher need one shape; got \[1, 2\] and \[1, 1\]"):
        kl_divergence(QUARTER, HALF[:, :1])


def test_the_balanced_divergence_emphasises_by_who_is_surer():
    student, teacher = (
        torch.tensor([[3.0, 0.0, 0.0], [0.4, 0.0, 0.0]]),
        torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0]]),
    )
    forward, backward = (f(student, teacher, 2.0, reduction="none") for f in (kl_divergence, reverse_kl))
    found = balanced_kl(student, teacher, 2.0, emphasis=3.0, reduction="none")
    wanted = torch.stack([3 * forward[0] + backward[0], forward[1] + 3 * backward[1]])  # the first is surer than told
    torch.testing.assert_close(found, wanted)
    swapped = balanced_kl(student, teacher, 2.0, emphasis=3.0, swapped=True, reduction="none")
    torch.testing.assert_close(found + swapped, 4 * (forward + backward))
    even = balanced_kl(student, teacher, 2.0, emphasis=1.0)
    torch.testing.assert_close(even, 2 * symmetric_kl(student, teacher, 2.0))
    with pytest.raises(RecipeError, match="emphasis"):
        balanced_kl(student, teacher, emphasis=0.0)

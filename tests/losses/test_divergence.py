"""Cross-entropies and KL divergence equal closed forms and hold in half precision."""

import math

import pytest
import torch
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses import cross_entropy, kl_divergence, soft_cross_entropy

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

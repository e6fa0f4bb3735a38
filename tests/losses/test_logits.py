"""DKD, NKD, OFA, Tf-KD, DIST and standardised logits equal their identities and hold where log-probabilities vanish."""

import math

import pytest
import torch

from attar.errors import RecipeError
from attar.losses import (
    adaptive_target_cross_entropy,
    correlation_distance,
    cross_entropy,
    decoupled_kl,
    kl_divergence,
    normalised_kd,
    pearson_distance,
    soft_cross_entropy,
    standardised_logits,
    virtual_teacher_kl,
)

LABELS = torch.tensor([0, 2, 4, 2])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * randn(4, 5), 2 * randn(4, 5, seed=1)


def log_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.double).log()


def test_decoupled_kl_with_matched_weights_is_kl():
    student, teacher = pair()
    for temperature in (1.0, 4.0):
        share = (teacher / temperature).softmax(-1).gather(1, LABELS[:, None]).squeeze(1)
        for reduction in ("none", "mean", "sum"):
            decoupled = decoupled_kl(
                student, teacher, LABELS, temperature, alpha=1.0, beta=1 - share, reduction=reduction
            )
            torch.testing.assert_close(decoupled, kl_divergence(student, teacher, temperature, reduction=reduction))


def test_decoupled_kl_by_hand():
    teacher, student, label = log_of(0.5, 0.3, 0.2), log_of(0.25, 0.25, 0.5), torch.tensor([0])
    target = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    others = 0.6 * math.log(0.6 / (1 / 3)) + 0.4 * math.log(0.4 / (2 / 3))
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (2.0, 8.0)):
        value = decoupled_kl(student, teacher, label, 1.0, alpha=alpha, beta=beta).item()
        assert value == pytest.approx(alpha * target + beta * others, rel=1e-12)


def test_decoupled_kl_scales_with_t_squared_and_defaults_to_the_papers_weights():
    student, teacher = pair()
    plain = decoupled_kl(student / 4, teacher / 4, LABELS, 1.0, alpha=1.0, beta=8.0)
    torch.testing.assert_close(decoupled_kl(student, teacher, LABELS), 16 * plain)
    unscaled = decoupled_kl(student, teacher, LABELS, scale_by_temperature_squared=False)
    torch.testing.assert_close(unscaled, plain)


def test_the_non_target_term_does_not_see_the_targets_logit():
    student, teacher = pair()
    moved = student.scatter_add(1, LABELS[:, None], torch.full((4, 1), 7.0, dtype=torch.double))
    for beta, same in ((1.0, True), (0.0, False)):
        values = [decoupled_kl(s, teacher, LABELS, alpha=1.0 - beta, beta=beta) for s in (student, moved)]
        assert torch.allclose(*values) is same


def test_decoupled_kl_holds_where_one_minus_p_underflows():
    # 1 − p_y = 2 e^−200: in probabilities it is 0 and its logarithm −inf; in log space nothing is lost
    teacher = torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.double)
    student = torch.tensor([[-200.0, 1.0, 0.0]], requires_grad=True)
    value = decoupled_kl(student, teacher.float(), torch.tensor([0]), 1.0)
    others = math.log(0.5) - 0.5 * (1.0 - 2 * math.log(1 + math.e))
    target = 200.0 + math.log(math.e + 1.0)  # p_y = 1: −log q_y
    assert value.item() == pytest.approx(target + 8 * others, rel=1e-5)
    value.backward()
    torch.testing.assert_close(student.grad.sum(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert student.grad[0, 0].item() == pytest.approx(-1.0)


@pytest.mark.parametrize("width", [1, 3])
def test_a_sample_with_no_class_but_its_label_costs_nothing_and_has_finite_gradients(width):
    student, teacher = (torch.full((2, width), -math.inf) for _ in range(2))
    labels = torch.tensor([0, width - 1])
    for side in (student, teacher):
        side[torch.arange(2), labels] = 1.5
        side.requires_grad_()
    for loss in (decoupled_kl, normalised_kd, adaptive_target_cross_entropy):
        value = loss(student, teacher, labels)
        student_gradient, teacher_gradient = torch.autograd.grad(value, (student, teacher))
        assert value.item() == 0
        assert not student_gradient.any()
        assert not teacher_gradient.any()


def test_classes_excluded_on_both_sides_are_no_classes():
    student, teacher = pair()
    padding = torch.full((4, 2), -math.inf, dtype=torch.double)
    labels = LABELS.clone()
    for loss in (decoupled_kl, normalised_kd, adaptive_target_cross_entropy):
        wide = loss(torch.cat([student, padding], 1), torch.cat([teacher, padding], 1), labels)
        torch.testing.assert_close(wide, loss(student, teacher, labels))


def test_normalised_kd_by_hand():
    teacher, student, label = log_of(0.5, 0.3, 0.2), log_of(0.25, 0.25, 0.5), torch.tensor([0])
    target = -0.5 * math.log(0.25)
    others = -0.6 * math.log(1 / 3) - 0.4 * math.log(2 / 3)
    assert normalised_kd(student, teacher, label).item() == pytest.approx(target + others, rel=1e-12)
    assert normalised_kd(student, teacher, label, gamma=1.5).item() == pytest.approx(target + 1.5 * others, rel=1e-12)


def test_normalised_kd_softens_the_others_alone():
    student, teacher = pair()
    kept = ~torch.nn.functional.one_hot(LABELS, 5).bool()
    p, q = (side[kept].view(4, 4) / 3 for side in (teacher, student))
    others = -(p.softmax(-1) * q.log_softmax(-1)).sum(-1)
    target = -(teacher.softmax(-1) * student.log_softmax(-1)).gather(1, LABELS[:, None]).squeeze(1)
    value = normalised_kd(student, teacher, LABELS, 3.0, gamma=1.5, reduction="none")
    torch.testing.assert_close(value, target + 1.5 * 9 * others)


def test_adaptive_targets_without_a_power_are_soft_cross_entropy_whatever_the_labels():
    student, teacher = pair()
    soft = soft_cross_entropy(student / 2, (teacher / 2).softmax(-1), reduction="none")
    for labels in (LABELS, 4 - LABELS):
        value = adaptive_target_cross_entropy(student, teacher, labels, 2.0, reduction="none")
        torch.testing.assert_close(value, soft)
        paper = adaptive_target_cross_entropy(student, teacher, labels, 2.0, form="paper", reduction="none")
        torch.testing.assert_close(paper, soft + cross_entropy(student / 2, labels, reduction="none"))


def test_adaptive_targets_by_hand():
    teacher, student, label = log_of(0.5, 0.3, 0.2), log_of(0.25, 0.25, 0.5), torch.tensor([0])
    rest = (0.3**1.5 * math.log(4) + 0.2**1.5 * math.log(2), 0.3 * math.log(4) + 0.2 * math.log(2))
    code = (1.5**1.5 - 1) * math.log(4) + rest[0]
    paper = 1.5**1.5 * math.log(4) + rest[1]
    assert adaptive_target_cross_entropy(student, teacher, label, gamma=1.5).item() == pytest.approx(code)
    value = adaptive_target_cross_entropy(student, teacher, label, gamma=1.5, form="paper")
    assert value.item() == pytest.approx(paper)


def test_the_virtual_teacher_is_label_smoothing_but_for_its_entropy_and_the_softening():
    logits = 2 * randn(4, 5)
    smoothing = 0.1
    correct = 1 - smoothing + smoothing / 5
    entropy = -correct * math.log(correct) - 4 * (smoothing / 5) * math.log(smoothing / 5)
    value = virtual_teacher_kl(logits, LABELS, 1.0, correct=correct)
    torch.testing.assert_close(value, cross_entropy(logits, LABELS, label_smoothing=smoothing) - entropy)


def test_the_virtual_teacher_by_hand_in_both_softenings():
    logits, label = log_of(0.5, 0.3, 0.2), torch.tensor([1])
    # power, T = 2: (√0.08, √0.84, √0.08) renormalised; the student is softened as well, or not
    roots = [math.sqrt(0.08), math.sqrt(0.84), math.sqrt(0.08)]
    u = [root / sum(roots) for root in roots]
    for own in (2.0, 1.0):
        q = [p ** (1 / own) for p in (0.5, 0.3, 0.2)]
        expected = sum(a * math.log(a / (b / sum(q))) for a, b in zip(u, q, strict=True))
        value = virtual_teacher_kl(logits, label, 2.0, correct=0.84, student_temperature=own)
        assert value.item() == pytest.approx(expected)
        scaled = virtual_teacher_kl(
            logits, label, 2.0, correct=0.84, student_temperature=own, scale_by_temperature_squared=True
        )
        assert scaled.item() == pytest.approx(4 * expected)
    weights = [math.exp(0.04), math.exp(0.42), math.exp(0.04)]
    u = [weight / sum(weights) for weight in weights]
    expected = sum(a * math.log(a / b) for a, b in zip(u, (0.5, 0.3, 0.2), strict=True))
    value = virtual_teacher_kl(logits, label, 2.0, correct=0.84, student_temperature=1.0, softening="softmax")
    assert value.item() == pytest.approx(expected)


def test_a_certain_virtual_teacher_is_cross_entropy_with_finite_gradients():
    logits = (2 * randn(4, 5)).requires_grad_()
    value = virtual_teacher_kl(logits, LABELS, 3.0, correct=1.0, student_temperature=1.0)
    torch.testing.assert_close(value, cross_entropy(logits, LABELS))
    value.backward()
    assert logits.grad.isfinite().all()


def test_standardised_logits_have_mean_zero_and_unbiased_deviation_one():
    logits = 3 * randn(4, 5) + 2
    scores = standardised_logits(logits)
    torch.testing.assert_close(scores.mean(-1), torch.zeros(4, dtype=torch.double), atol=1e-12, rtol=0)
    torch.testing.assert_close(scores.std(-1), torch.ones(4, dtype=torch.double), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        standardised_logits(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[-1.0, 0.0, 1.0]]), atol=1e-6, rtol=0
    )


def test_standardised_logits_forget_scale_and_shift():
    logits = randn(4, 5)
    scale, shift = torch.tensor([0.5, 1.0, 3.0, 40.0]).double()[:, None], randn(4, 1, seed=2) * 10
    torch.testing.assert_close(
        standardised_logits(scale * logits + shift), standardised_logits(logits), rtol=1e-5, atol=1e-6
    )


def test_standardised_logits_of_equal_and_excluded_classes():
    logits = torch.tensor([[0.1, 0.1, 0.1], [1.0, 3.0, -math.inf], [2.0, -math.inf, -math.inf]], requires_grad=True)
    scores = standardised_logits(logits)
    expected = torch.tensor(
        [[0.0, 0.0, 0.0], [-math.sqrt(0.5), math.sqrt(0.5), -math.inf], [0.0, -math.inf, -math.inf]]
    )
    torch.testing.assert_close(scores, expected)
    scores.log_softmax(-1)[:, 0].sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[0].any()


def test_pearson_distance_by_hand_and_against_numpy():
    a, b = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0], [3.0, 2.0, 1.0]])
    torch.testing.assert_close(pearson_distance(a, b, reduction="none"), torch.tensor([0.0, 2.0]), atol=1e-6, rtol=0)
    student, teacher = pair()
    correlation = torch.stack([torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(student, teacher, strict=True)])
    torch.testing.assert_close(pearson_distance(student, teacher, reduction="none"), 1 - correlation)
    correlation = torch.stack(
        [torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(student.T, teacher.T, strict=True)]
    )
    torch.testing.assert_close(pearson_distance(student, teacher, dim=0), 1 - correlation.mean())


def test_pearson_distance_forgets_scale_and_shift_of_every_row():
    student, teacher = pair()
    scale, shift = torch.tensor([0.5, 1.0, 3.0, 40.0]).double()[:, None], 10 * randn(4, 1, seed=2)
    torch.testing.assert_close(pearson_distance(scale * student + shift, teacher), pearson_distance(student, teacher))
    torch.testing.assert_close(pearson_distance(-student, teacher), 2 - pearson_distance(student, teacher))
    assert pearson_distance(scale * teacher + shift, teacher).item() < 1e-8


def test_correlation_distance_is_of_probabilities_by_rows_and_by_columns():
    student, teacher = pair()
    p, q = ((side / 4).softmax(-1) for side in (teacher, student))
    rows, columns = pearson_distance(q, p), pearson_distance(q.T, p.T)
    torch.testing.assert_close(correlation_distance(student, teacher, 4.0), rows + columns)
    torch.testing.assert_close(
        correlation_distance(student, teacher, 4.0, inter=2.0, intra=0.5), 2 * rows + columns / 2
    )
    scaled = correlation_distance(student, teacher, 4.0, scale_by_temperature_squared=True)
    torch.testing.assert_close(scaled, 16 * (rows + columns))
    assert rows > 1e-3
    assert columns > 1e-3


def test_correlation_distance_is_zero_for_shifted_logits_and_passes_finite_differences():
    student, teacher = pair()
    assert correlation_distance(teacher + 3.0, teacher).item() < 1e-5  # the 1e-8 beside columns of rare classes
    inputs = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: correlation_distance(s, t, 2.0), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_correlation_and_virtual_teacher_hold_in_half_precision(dtype):
    student, teacher = ((60 * side / side.abs().amax()).to(dtype).requires_grad_() for side in pair())
    for loss, expected in (
        (correlation_distance(student, teacher), correlation_distance(student.double(), teacher.double())),
        (virtual_teacher_kl(student, LABELS), virtual_teacher_kl(student.double(), LABELS)),
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_mistakes_are_explained():
    student, teacher = pair()
    with pytest.raises(RecipeError, match=r"logits \[4, 5\] need labels \[4\], one integer a sample; got \[3\]"):
        decoupled_kl(student, teacher, LABELS[:3])
    with pytest.raises(RecipeError, match=r"at least 1 .* got 0\.5"):
        adaptive_target_cross_entropy(student, teacher, LABELS, gamma=0.5)
    with pytest.raises(RecipeError, match="did you mean 'paper'"):
        adaptive_target_cross_entropy(student, teacher, LABELS, form="papr")
    with pytest.raises(RecipeError, match=r"above 0 and at most 1; got 1\.2"):
        virtual_teacher_kl(student, LABELS, correct=1.2)
    with pytest.raises(RecipeError, match="did you mean 'softmax'"):
        virtual_teacher_kl(student, LABELS, softening="softmx")
    with pytest.raises(RecipeError, match="temperature must be positive; got 0"):
        normalised_kd(student, teacher, LABELS, 0)
    with pytest.raises(RecipeError, match="need one shape"):
        correlation_distance(student, teacher[:, :4])

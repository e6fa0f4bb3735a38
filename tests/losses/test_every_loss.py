"""What holds for every base loss: derivatives, reductions, half precision, degenerate batches, no loop over samples."""

import functools

import pytest
import torch

from attar import losses
from attar.errors import RecipeError

LABELS = torch.tensor([0, 2, 1, 2, 4, 0, 3])
MARGINS = torch.tensor([-0.5, -0.1, -1.0], dtype=torch.double)
CLASS_MEANS = torch.randn(5, 5, generator=torch.Generator().manual_seed(9), dtype=torch.double)
LOGITS, MAPS = (5,), (3, 6, 6)


def labelled(loss, **options):
    return lambda s, t, **reduction: loss(s, t, LABELS[: len(s)].expand(s.shape[:-1]), **options, **reduction)


def of(loss, **options):
    return functools.partial(loss, **options)


LOSSES = {  # name: the loss of student, teacher and a reduction; the shape of a sample; whether it is 0 at s = t
    "kl": (of(losses.kl_divergence, temperature=2.0), LOGITS, True),
    "reverse kl": (of(losses.reverse_kl, temperature=2.0), LOGITS, True),
    "symmetric kl": (of(losses.symmetric_kl, temperature=2.0), LOGITS, True),
    # no emphasis: its weights are a step, and rounding may take a sample to the other side of it
    "balanced kl": (of(losses.balanced_kl, temperature=2.0, emphasis=1.0), LOGITS, True),
    "jensen-shannon": (of(losses.jensen_shannon, temperature=2.0, beta=0.3), LOGITS, True),
    "skewed kl": (of(losses.skewed_kl, temperature=2.0), LOGITS, True),
    "alpha 0.5": (of(losses.alpha_divergence, temperature=2.0, alpha=0.5), LOGITS, True),
    "total variation": (of(losses.total_variation, temperature=2.0), LOGITS, True),
    "dkd": (labelled(losses.decoupled_kl), LOGITS, True),
    "nkd": (labelled(losses.normalised_kd, temperature=2.0, gamma=1.5), LOGITS, False),
    "ofa": (labelled(losses.adaptive_target_cross_entropy, gamma=1.4), LOGITS, False),
    "ofa paper": (labelled(losses.adaptive_target_cross_entropy, gamma=1.4, form="paper"), LOGITS, False),
    "pearson": (losses.pearson_distance, LOGITS, True),
    "standardised kl": (
        lambda s, t, **reduction: losses.kl_divergence(
            losses.standardised_logits(s), losses.standardised_logits(t), 2.0, **reduction
        ),
        LOGITS,
        True,
    ),
    "hint": (losses.hint_distance, MAPS, True),
    "unit squared": (of(losses.unit_distance, dim=-1), LOGITS, True),
    "unit absolute": (of(losses.unit_distance, dim=-1, kind="absolute"), LOGITS, True),
    "unit cosine": (of(losses.unit_distance, dim=-1, kind="cosine"), LOGITS, True),
    "norm and direction": (
        lambda s, t, **reduction: losses.norm_direction_distance(s, t, CLASS_MEANS, LABELS[: len(s)], **reduction),
        LOGITS,
        False,
    ),
    "attention": (losses.attention_distance, MAPS, True),
    "attention paper": (of(losses.attention_distance, form="paper"), MAPS, True),
    "factor": (losses.factor_distance, MAPS, True),
    "ofd": (of(losses.partial_distance, margins=MARGINS), MAPS, False),
    "boundary": (losses.boundary_distance, MAPS, False),
    "review": (losses.hierarchical_context_distance, MAPS, True),
    "vid": (of(losses.variational_distance, raw_variances=MARGINS), MAPS, False),
    "nst": (losses.selectivity_distance, MAPS, True),
    "similarity": (losses.similarity_distance, MAPS, True),
    "rkd distance": (losses.relational_distance, LOGITS, True),
    "rkd angle": (losses.relational_angle, LOGITS, True),
    "pkt": (losses.probability_transfer, LOGITS, True),
    "icc": (losses.channel_correlation_distance, MAPS, True),
    "info nce": (of(losses.info_nce, temperature=0.5), LOGITS, False),
}
COUPLED = {"similarity", "rkd distance", "rkd angle", "pkt", "info nce"}  # a sample's value depends on the batch
every_loss = pytest.mark.parametrize("name", LOSSES)


def pair(name: str, n: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, *LOSSES[name][1], generator=generator, dtype=torch.double) for _ in range(2))


@every_loss
def test_derivatives_on_both_sides_are_those_of_finite_differences(name):
    loss, (student, teacher) = LOSSES[name][0], pair(name, n=2 if LOSSES[name][1] is MAPS else 4)
    if name == "rkd angle":  # all angles of two points are constant; three random ones are not
        student, teacher = student[:3], teacher[:3]
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), teacher.requires_grad_()))


@every_loss
def test_mean_and_sum_are_of_the_samples(name):
    loss, (student, teacher) = LOSSES[name][0], pair(name)
    each = loss(student, teacher, reduction="none")
    assert each.shape == (4,)
    torch.testing.assert_close(loss(student, teacher), each.mean())
    torch.testing.assert_close(loss(student, teacher, reduction="sum"), each.sum())
    with pytest.raises(RecipeError, match="did you mean 'mean'"):
        loss(student, teacher, reduction="meen")


@every_loss
def test_samples_are_treated_alike(name):
    loss, (student, teacher) = LOSSES[name][0], pair(name)
    if name in ("dkd", "nkd", "ofa", "ofa paper", "norm and direction"):  # labels belong to places: see below
        student, teacher = student[[0, 0, 1, 1]], teacher[[0, 0, 1, 1]]
        student, teacher = student.clone(), teacher.clone()
        first = loss(student[:1], teacher[:1], reduction="none")
        torch.testing.assert_close(loss(student, teacher, reduction="none")[:1], first)
        return
    order = torch.tensor([2, 0, 3, 1])
    each, turned = (loss(s, t, reduction="none") for s, t in ((student, teacher), (student[order], teacher[order])))
    torch.testing.assert_close(turned, each[order])
    if name not in COUPLED:
        torch.testing.assert_close(loss(student[1:2], teacher[1:2], reduction="none"), each[1:2])


@every_loss
def test_a_student_that_equals_its_teacher_is_at_zero_with_a_finite_gradient(name):
    loss, _, zero = LOSSES[name]
    teacher = pair(name)[1]
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert student.grad.isfinite().all()
    if zero:
        assert abs(value.item()) < 1e-7  # Pearson's 1e-8 in the denominator
        assert loss(*pair(name)) > 1e-4


@every_loss
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 60.0), (torch.bfloat16, 60.0), (torch.bfloat16, 1e4)])
def test_half_precision_is_finite_and_near_double(name, dtype, largest):
    loss, sides = LOSSES[name][0], pair(name)
    student, teacher = ((side / side.abs().amax() * largest).to(dtype).requires_grad_() for side in sides)
    value = loss(student, teacher)
    value.backward()
    expected = loss(student.detach().double(), teacher.detach().double())
    assert value.dtype == (torch.float64 if name in ("vid", "norm and direction") else torch.float32)
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=1e-6)
    assert student.grad.isfinite().all()
    assert name == "boundary" or teacher.grad.isfinite().all()  # of boundaries the teacher's sign is all that counts


@every_loss
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("fill", [0.0, 0.1, None])
def test_zeros_constants_and_a_batch_of_one_leave_value_and_gradient_finite(name, n, fill):
    loss, sides = LOSSES[name][0], pair(name, n)
    student, teacher = (side.float() if fill is None else torch.full_like(side.float(), fill) for side in sides)
    for given in ((student, teacher), (student, sides[1].float()), (sides[0].float(), teacher)):
        s, t = (side.clone().requires_grad_() for side in given)
        value = loss(s, t)
        value.backward()
        assert value.isfinite()
        assert s.grad.isfinite().all()
        assert name == "boundary" or t.grad.isfinite().all()
        assert s.grad.abs().amax() < 1e3  # rounding of equal values is not taken for a direction


def graph_size(value: torch.Tensor) -> int:
    """Count the nodes of a value's autograd graph: one or more for every operation."""
    found, left = set(), [value.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [parent for parent, _ in node.next_functions]
    return len(found)


@every_loss
def test_no_operation_is_repeated_for_every_sample(name):
    sizes = []
    for n in (3, 7):
        student, teacher = (side.requires_grad_() for side in pair(name, n))
        sizes.append(graph_size(LOSSES[name][0](student, teacher)))
    assert sizes[0] == sizes[1] > 1


@every_loss
def test_batches_of_different_size_are_refused_with_both_shapes(name):
    student, teacher = pair(name)
    with pytest.raises(RecipeError, match=rf"\[4.*\[1{', ' if len(LOSSES[name][1]) else ''}"):
        LOSSES[name][0](student, teacher[:1])


@pytest.mark.parametrize("name", ["kl", "dkd", "nkd", "ofa", "pearson", "standardised kl", "alpha 0.5"])
def test_logits_may_have_any_leading_dimensions(name):
    loss, (student, teacher) = LOSSES[name][0], pair(name)
    if name in ("dkd", "nkd", "ofa"):
        call = {"dkd": losses.decoupled_kl, "nkd": losses.normalised_kd, "ofa": losses.adaptive_target_cross_entropy}
        flat = call[name](student, teacher, LABELS[:4], reduction="none")
        shaped = call[name](student.view(2, 2, 5), teacher.view(2, 2, 5), LABELS[:4].view(2, 2), reduction="none")
    else:
        flat = loss(student, teacher, reduction="none")
        shaped = loss(student.view(2, 2, 5), teacher.view(2, 2, 5), reduction="none")
    torch.testing.assert_close(shaped.flatten(), flat)


@pytest.mark.parametrize("name", ["similarity", "rkd angle", "pkt", "icc", "nst", "info nce"])
def test_autocast_does_not_halve_the_products(name):
    loss, sides = LOSSES[name][0], pair(name)
    student, teacher = (side.float() for side in sides)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    torch.testing.assert_close(value, loss(student, teacher), rtol=1e-6, atol=0)

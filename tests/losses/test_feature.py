"""Losses between feature maps equal hand-computed values, plain loops, limits, and the invariances they promise."""

import math

import pytest
import torch
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses import (
    attention_distance,
    boundary_distance,
    factor_distance,
    flow_distance,
    hierarchical_context_distance,
    hint_distance,
    negative_margins,
    norm_direction_distance,
    partial_distance,
    same_places,
    selectivity_distance,
    unit_distance,
    variational_distance,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.double)


def test_hint_is_the_mean_square_of_every_entry():
    student, teacher = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    torch.testing.assert_close(hint_distance(student, teacher), functional.mse_loss(student, teacher))
    assert hint_distance(torch.tensor([[1.0, 4.0]]), torch.tensor([[0.0, 1.0]])).item() == 5.0


def test_unit_distances_by_hand():
    a, b = double(3, 4)[None], double(0, 2)[None]  # directions (0.6, 0.8) and (0, 1)
    assert unit_distance(a, b).item() == pytest.approx(0.36 + 0.04)
    assert unit_distance(a, b, kind="absolute").item() == pytest.approx(0.8)
    assert unit_distance(a, b, kind="cosine").item() == pytest.approx(0.2)


def test_unit_distances_are_per_place_and_forget_the_length_there():
    student, teacher = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    length = randn(2, 1, 4, 4, seed=2).exp()
    for kind in ("squared", "absolute", "cosine"):
        each = unit_distance(student, teacher, kind=kind, reduction="none")
        assert each.shape == (2, 4, 4)
        torch.testing.assert_close(unit_distance(length * student, teacher, kind=kind, reduction="none"), each)
    squared, cosine = (unit_distance(student, teacher, kind=kind) for kind in ("squared", "cosine"))
    torch.testing.assert_close(squared, 2 * cosine)
    reference = 1 - functional.cosine_similarity(student, teacher, dim=1)
    torch.testing.assert_close(unit_distance(student, teacher, kind="cosine", reduction="none"), reference)


def test_norm_and_direction_by_hand():
    labels = torch.tensor([0, 1, 2])
    means = torch.stack([double(2, 0), double(4, 0), double(6, 0)])  # only the direction counts
    teacher = double(3, 4).expand(3, 2)  # length 5
    student = torch.stack([double(1, 0), double(0, 10), double(10, 0)])
    expected = double(1 - 1 / 5, 1 - 0, 1 - 10 / 10)
    torch.testing.assert_close(norm_direction_distance(student, teacher, means, labels, reduction="none"), expected)


def test_short_features_are_pushed_along_the_class_and_long_ones_only_turned():
    labels, means = torch.tensor([0]), double(0, 3)[None]
    for student, teacher in ((double(1, 1), double(5, 0)), (double(3, 4), double(1, 0))):
        s = student[None].clone().requires_grad_()
        norm_direction_distance(s, teacher[None], means, labels).backward()
        if teacher[0] == 5:
            torch.testing.assert_close(s.grad, double(0, -1 / 5)[None])
        else:
            assert (s.grad @ student).abs().item() < 1e-12
            assert (s.grad @ double(0, 1)).item() < 0
    long = double(0, 7)[None]
    assert norm_direction_distance(long, double(1, 2)[None], means, labels).item() == pytest.approx(0)


def test_attention_by_hand_in_both_forms():
    student = double(3, 4).view(1, 1, 1, 2).sqrt()  # squares (3, 4): direction (0.6, 0.8)
    teacher = torch.stack([double(0, 1), double(0, 1)]).view(1, 2, 1, 2)  # (0, 2): direction (0, 1)
    assert attention_distance(student, teacher).item() == pytest.approx((0.36 + 0.04) / 2)
    assert attention_distance(student, teacher, form="paper").item() == pytest.approx(math.sqrt(0.4))
    assert factor_distance(student, teacher).item() == pytest.approx((0.6 + 0.2) / 2)


@pytest.mark.parametrize("loss", [attention_distance, factor_distance])
def test_attention_forgets_strength_sign_and_channels(loss):
    student, teacher = randn(3, 4, 5, 5), randn(3, 2, 5, 5, seed=1)
    strength = double(0.1, 1, 30)[:, None, None, None]
    torch.testing.assert_close(loss(-strength * student.flip(1), teacher), loss(student, teacher))
    torch.testing.assert_close(loss(student.repeat(1, 3, 1, 1), teacher), loss(student, teacher))
    assert (loss(student.flip(3), teacher) - loss(student, teacher)).abs() > 1e-4


def test_attention_takes_the_mean_over_batch_and_places():
    student, teacher = randn(3, 4, 5, 5), randn(3, 2, 5, 5, seed=1)
    for power in (2.0, 4.0):
        a, b = (functional.normalize(side.abs().pow(power).mean(1).flatten(1)) for side in (student, teacher))
        torch.testing.assert_close(attention_distance(student, teacher, power=power), (a - b).square().mean())
    torch.testing.assert_close(
        attention_distance(student, teacher, form="paper", power=4.0), (a - b).square().sum(1).sqrt().mean()
    )


@pytest.mark.parametrize("loss", [attention_distance, factor_distance, selectivity_distance])
def test_the_larger_map_is_pooled_to_the_smaller(loss):
    small, large = randn(2, 3, 4, 4), randn(2, 3, 8, 8, seed=1)
    pooled = functional.avg_pool2d(large, 2)
    torch.testing.assert_close(loss(small, large), loss(small, pooled))
    torch.testing.assert_close(loss(large, small), loss(pooled, small))
    mixed = randn(2, 3, 8, 2, seed=2)  # taller and narrower
    torch.testing.assert_close(
        loss(small, mixed), loss(functional.avg_pool2d(small, (1, 2)), functional.avg_pool2d(mixed, (2, 1)))
    )


def test_negative_margins_are_the_mean_of_a_normal_below_zero():
    means, deviations = double(0, 1, -2, 0.5), double(1, 0.5, 1, 3)
    samples = means + deviations * torch.randn(400_000, 4, generator=torch.Generator().manual_seed(0))
    below = samples < 0
    empirical = (samples * below).sum(0) / below.sum(0)
    torch.testing.assert_close(negative_margins(means, deviations), empirical, rtol=0.02, atol=0.01)
    assert negative_margins(double(0), double(1)).item() == pytest.approx(-math.sqrt(2 / math.pi))


def test_negative_margins_of_channels_that_are_hardly_ever_negative_or_constant():
    # P(x < 0) = 0.00135 at 3 deviations, 0.0009 at 3.12; a constant channel has its own value or zero
    margins = negative_margins(double(3.0, 3.12, 100, -2, 2, 0), double(1, -1, 0.5, 0, 0, 0))
    inverse_mills = math.exp(-4.5) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(3 / math.sqrt(2)))
    torch.testing.assert_close(margins, double(3 - inverse_mills, -3, -1.5, -2, 0, 0))
    assert negative_margins(double(-50), double(1)).item() == pytest.approx(-50)


def test_partial_distance_by_hand():
    margin = -1.0
    cases = [  # teacher, student, expected
        (2.0, 0.5, 2.25),  # the teacher fires: its value is wanted from below …
        (2.0, 3.0, 1.0),  # … and from above
        (-0.5, 0.5, 1.0),  # silent, above the margin: its value is an upper bound
        (-0.5, -0.7, 0.0),
        (-3.0, 0.5, 2.25),  # silent, below the margin: the margin is the bound
        (-3.0, -1.5, 0.0),
        (-3.0, -2.9, 0.0),
    ]
    teacher, student, expected = (double(*column).view(-1, 1, 1, 1) for column in zip(*cases, strict=True))
    each = partial_distance(student, teacher, double(margin), reduction="none")
    torch.testing.assert_close(each, expected.flatten())


def test_partial_distance_sums_a_sample_and_is_zero_iff_every_target_is_met():
    student, teacher, margins = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1), double(-0.5, -1.5)
    total = partial_distance(student, teacher, margins, reduction="none").sum()
    alone = [
        partial_distance(student[:, c : c + 1, i : i + 1], teacher[:, c : c + 1, i : i + 1], margins[c : c + 1])
        for c in range(2)
        for i in range(4)
    ]
    torch.testing.assert_close(total / 3, torch.stack(alone).sum())
    met = torch.where(teacher > 0, teacher, torch.maximum(teacher, margins[:, None, None]) - student.abs())
    assert partial_distance(met, teacher, margins).item() == 0
    assert partial_distance(met + 1e-3, teacher, margins) > 0


def test_boundary_distance_by_hand():
    teacher, student = double(1, 1, 1, -1, -1, 0), double(2, 0.25, -1, -2, 0.25, -0.5)
    expected = double(0, 0.5625, 4, 0, 1.5625, 0.25)
    torch.testing.assert_close(boundary_distance(student[:, None], teacher[:, None], reduction="none"), expected)
    assert boundary_distance(student[None], teacher[None]).item() == pytest.approx(expected.sum().item())
    assert boundary_distance(double(1.5)[None], double(3)[None], margin=2.0).item() == pytest.approx(0.25)


def test_boundary_distance_sees_only_the_side_the_teacher_is_on():
    student, teacher = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    torch.testing.assert_close(boundary_distance(student, 7 * teacher), boundary_distance(student, teacher))


def test_hierarchical_context_by_a_plain_loop():
    for size, levels, weights in ((8, (4, 2, 1), (1, 0.5, 0.25, 0.125)), (4, (2, 1), (1, 0.5, 0.25)), (1, (), (1,))):
        student, teacher = randn(3, 2, size, size), randn(3, 2, size, size, seed=1)
        terms = [functional.mse_loss(student, teacher)]
        terms += [
            functional.mse_loss(*(functional.adaptive_avg_pool2d(side, level) for side in (student, teacher)))
            for level in levels
        ]
        expected = sum(w * term for w, term in zip(weights, terms, strict=True)) / sum(weights)
        torch.testing.assert_close(hierarchical_context_distance(student, teacher), expected)


def test_hierarchical_context_of_pooled_vectors_and_of_constant_gaps():
    student, teacher = randn(3, 5), randn(3, 5, seed=1)
    torch.testing.assert_close(hierarchical_context_distance(student, teacher), functional.mse_loss(student, teacher))
    maps = randn(3, 2, 8, 8)
    assert hierarchical_context_distance(maps + 2, maps).item() == pytest.approx(4.0)  # weights sum to one


def test_variational_distance_is_the_normals_negative_log_likelihood():
    mean, teacher, raw = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1), double(0.3, -2)
    variance = functional.softplus(raw) + 1e-5
    normal = torch.distributions.Normal(mean, variance.sqrt()[:, None, None])
    expected = -normal.log_prob(teacher).mean() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(variational_distance(mean, teacher, raw), expected)


def test_variational_distance_starts_at_the_variance_in_use_and_is_least_at_the_true_one():
    start = double(math.log(math.exp(5 - 1e-5) - 1)).requires_grad_()
    gap = math.sqrt(3.0)
    value = variational_distance(torch.zeros(1, 1, dtype=torch.double), double(gap)[None], start)
    assert value.item() == pytest.approx(0.5 * (3 / 5 + math.log(5)))
    best = double(math.log(math.exp(3 - 1e-5) - 1)).requires_grad_()
    variational_distance(torch.zeros(1, 1, dtype=torch.double), double(gap)[None], best).backward()
    assert best.grad.abs().item() < 1e-12


def test_variances_have_right_derivatives():
    mean, teacher, raw = randn(2, 2, 2, 2), randn(2, 2, 2, 2, seed=1), double(0.3, -2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: variational_distance(mean, teacher, a), raw)


def test_selectivity_by_hand():
    student = double(3, 4).view(1, 1, 1, 2)  # one channel (0.6, 0.8)
    teacher = torch.stack([double(2, 0), double(0, 5)]).view(1, 2, 1, 2)  # two channels, the axes
    # kernels: k(s, s) = 1; k(t, t) = mean of (1, 0, 0, 1) = ½; k(s, t) = mean of (0.36, 0.64) = ½
    assert selectivity_distance(student, teacher).item() == pytest.approx(1 + 0.5 - 2 * 0.5)


def test_selectivity_is_the_distance_of_second_moments_over_places():
    student, teacher = randn(3, 4, 5, 5), randn(3, 7, 5, 5, seed=1)
    a, b = (functional.normalize(side.flatten(2), dim=2) for side in (student, teacher))
    moments = a.mT @ a / 4 - b.mT @ b / 7
    torch.testing.assert_close(selectivity_distance(student, teacher, reduction="none"), moments.square().sum((1, 2)))


def test_selectivity_forgets_order_strength_and_sign_of_channels():
    student, teacher = randn(3, 4, 5, 5), randn(3, 7, 5, 5, seed=1)
    strength = randn(3, 4, 1, 1, seed=2)
    torch.testing.assert_close(
        selectivity_distance((strength * student).flip(1), teacher), selectivity_distance(student, teacher)
    )
    assert abs(selectivity_distance(student, student.flip(1)).item()) < 1e-12


def test_flow_by_plain_einsum_and_pooling():
    first, second = (
        (randn(3, 2, 8, 8), randn(3, 4, 4, 4, seed=1)),
        (randn(3, 2, 6, 6, seed=2), randn(3, 4, 6, 6, seed=3)),
    )
    a = torch.einsum("nchw,ndhw->ncd", functional.avg_pool2d(first[0], 2), first[1]) / 16
    b = torch.einsum("nchw,ndhw->ncd", *second) / 36
    torch.testing.assert_close(flow_distance(first, second), functional.mse_loss(a, b))
    x, y = (side.requires_grad_() for side in (randn(1, 2, 2, 2), randn(1, 1, 2, 2, seed=1)))
    taught = randn(1, 2, 2, 2, seed=2), randn(1, 1, 2, 2, seed=3)
    assert torch.autograd.gradcheck(lambda x, y: flow_distance((x, y), taught), (x, y))


def test_mistakes_are_explained():
    maps = randn(2, 3, 4, 4)
    with pytest.raises(RecipeError, match=r"got \[2, 3, 4, 4\] and \[2, 1, 4, 4\]. Put a projector on the student"):
        hint_distance(maps, maps[:, :1])
    with pytest.raises(RecipeError, match="did you mean 'absolute'"):
        unit_distance(maps, maps, kind="absolut")
    with pytest.raises(RecipeError, match="did you mean 'paper'"):
        attention_distance(maps, maps, form="papers")
    with pytest.raises(RecipeError, match=r"maps are \[n, channels, height, width\] of the same n samples"):
        selectivity_distance(maps, maps.flatten(2))
    with pytest.raises(RecipeError, match="3 channels need as many margins"):
        partial_distance(maps, maps, double(-1, -1))
    with pytest.raises(RecipeError, match="3 channels need as many variances"):
        variational_distance(maps, maps, double(-1))
    with pytest.raises(RecipeError, match=r"maps need 2 or 4 dimensions; got the shape \[2, 3, 16\]"):
        hierarchical_context_distance(maps.flatten(2), maps.flatten(2))
    with pytest.raises(RecipeError, match="power of an attention map is at least 1"):
        attention_distance(maps, maps, power=0.5)


def test_the_larger_map_is_pooled_to_the_smaller_whichever_it_is():
    large, small = randn(2, 3, 8, 4), randn(2, 5, 4, 4, seed=1)
    pooled, kept = same_places(large, small)
    torch.testing.assert_close(pooled, large.unflatten(2, (4, 2)).mean(3))
    assert torch.equal(kept, small)
    kept, pooled = same_places(small, large)
    torch.testing.assert_close(pooled, large.unflatten(2, (4, 2)).mean(3))
    assert same_places(large.half(), small.half())[0].dtype == torch.float32
    with pytest.raises(RecipeError, match="same n samples"):
        same_places(large[:1], small)

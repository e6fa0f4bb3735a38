"""Contrastive losses equal plain loops and bounds, and hold at any score, in half precision and without partners."""

import math

import pytest
import torch
from torch.nn import functional

from attar.errors import RecipeError
from attar.losses import (
    affinity_cross_entropy,
    bank_scores,
    info_nce,
    log_partition,
    noise_contrastive,
    nt_xent,
    supervised_contrastive,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(randn(*shape, seed=seed), dim=-1)


def test_info_nce_is_cross_entropy_over_cosines():
    anchors, partners, negatives = randn(4, 6), randn(4, 6, seed=1), randn(3, 6, seed=2)
    scores = functional.cosine_similarity(anchors[:, None], torch.cat([partners, negatives])[None], dim=2) / 0.3
    expected = functional.cross_entropy(scores, torch.arange(4))
    torch.testing.assert_close(info_nce(anchors, partners, 0.3, negatives=negatives), expected)
    torch.testing.assert_close(
        info_nce(anchors, partners, 0.3), functional.cross_entropy(scores[:, :4], torch.arange(4))
    )


def test_info_nce_lies_between_zero_and_the_logarithm_of_the_candidates():
    axes = torch.eye(5, dtype=torch.double)
    assert info_nce(axes, axes, 0.01).item() == pytest.approx(0, abs=1e-12)
    assert info_nce(axes, axes, 1e6, negatives=axes[:3]).item() == pytest.approx(math.log(8), rel=1e-5)
    assert info_nce(axes[:1], axes[:1]).item() == 0  # one candidate


def test_supervised_contrast_by_a_plain_loop():
    embeddings, labels = randn(6, 4), torch.tensor([0, 1, 0, 2, 1, 0])
    f = functional.normalize(embeddings)
    expected = []
    for i in range(6):
        others = [k for k in range(6) if k != i]
        total = sum(math.exp(f[i] @ f[k] / 0.2) for k in others)
        own = [j for j in others if labels[j] == labels[i]]
        expected.append(sum(math.log(total) - (f[i] @ f[j]).item() / 0.2 for j in own) / max(len(own), 1))
    each = supervised_contrastive(embeddings, labels, 0.2, reduction="none")
    torch.testing.assert_close(each, torch.tensor(expected, dtype=torch.double))
    assert each[3] == 0  # no partner
    torch.testing.assert_close(supervised_contrastive(embeddings, labels, 0.2), each.sum() / 5)
    torch.testing.assert_close(supervised_contrastive(embeddings, labels, 0.2, reduction="sum"), each.sum())


def test_supervised_contrast_forgets_lengths_and_the_names_of_classes():
    embeddings, labels = randn(6, 4), torch.tensor([0, 1, 0, 2, 1, 0])
    value = supervised_contrastive(embeddings, labels)
    lengths = randn(6, 1, seed=1).exp()
    torch.testing.assert_close(supervised_contrastive(lengths * embeddings, labels * -7 + 3), value)


@pytest.mark.parametrize("labels", [[3], [0, 1, 2]])
def test_supervised_contrast_without_partners_is_zero_with_gradient_zero(labels):
    embeddings = randn(len(labels), 4).requires_grad_()
    value = supervised_contrastive(embeddings, torch.tensor(labels))
    value.backward()
    assert value.item() == 0
    assert not embeddings.grad.any()


def test_nt_xent_is_cross_entropy_with_the_other_view_among_all_but_oneself():
    first, second = randn(4, 6), randn(4, 6, seed=1)
    both = functional.normalize(torch.cat([first, second]))
    scores = (both @ both.T / 0.5).fill_diagonal_(-math.inf)
    expected = functional.cross_entropy(scores, torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]), reduction="none")
    torch.testing.assert_close(nt_xent(first, second, reduction="none"), expected)
    torch.testing.assert_close(nt_xent(first, second), expected.mean())


def test_contrasts_have_right_derivatives():
    first, second = randn(3, 4).requires_grad_(), randn(3, 4, seed=1).requires_grad_()
    memory, labels = randn(2, 4, seed=2).requires_grad_(), torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(lambda a, b, m: info_nce(a, b, 0.3, negatives=m), (first, second, memory))
    assert torch.autograd.gradcheck(nt_xent, (first, second))
    assert torch.autograd.gradcheck(lambda a: supervised_contrastive(a, labels, 0.3), first)


@pytest.mark.parametrize("rows", [10, 300])  # all rows multiplied at once, and rows picked first
def test_bank_scores_are_products_with_the_rows_named(rows):
    anchors, bank = randn(3, 5).requires_grad_(), randn(rows, 5, seed=1)
    indices = torch.randint(rows, (3, 7), generator=torch.Generator().manual_seed(2))
    expected = torch.einsum("nd,nmd->nm", anchors, bank[indices]) / 0.07
    scores = bank_scores(anchors, bank, indices)
    torch.testing.assert_close(scores, expected)
    for result in (scores, expected):
        anchors.grad = None
        result.square().sum().backward()
        torch.testing.assert_close(
            anchors.grad, 2 * torch.einsum("nm,nmd->nd", expected.detach(), bank[indices]) / 0.07
        )


def test_the_partition_is_the_memory_times_the_mean_exponential():
    scores = randn(3, 7)
    assert log_partition(scores, 50).item() == pytest.approx(math.log(scores.exp().mean().item() * 50))
    assert not log_partition(scores.requires_grad_(), 50).requires_grad
    assert log_partition(scores + 1e4, 50).isfinite()


def test_noise_contrast_by_the_formula_in_probabilities():
    partners, negatives, rows = randn(3), randn(3, 7, seed=1), 50
    z = 20.0
    noise = 7 / rows
    s, found = negatives.exp() / z, partners.exp() / z
    expected = -(found / (found + noise)).log() - (noise / (s + noise)).log().sum(1)
    each = noise_contrastive(partners, negatives, math.log(z), rows=rows, reduction="none")
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(
        noise_contrastive(partners, negatives, torch.tensor(z).log(), rows=rows), expected.mean()
    )


def test_noise_contrast_is_least_where_scores_are_the_log_ratio_to_the_noise():
    # two classes of one score each, drawn as partner with probability p = (0.8, 0.2) and as noise with ½ each
    scores, p = torch.zeros(2, dtype=torch.double), torch.tensor([0.8, 0.2], dtype=torch.double)
    best = (p * 2).log() + 1.0  # s / P = p / ½: score − log Z − log P with log Z = 1 + log 2

    def expected_loss(scores: torch.Tensor) -> torch.Tensor:
        rows = torch.stack(
            [
                noise_contrastive(scores[i].expand(2), scores[:, None], 1 + math.log(2), rows=2, reduction="none")
                for i in range(2)
            ]
        )
        return (p[:, None] * 0.5 * rows).sum()

    best = best.requires_grad_()
    expected_loss(best).backward()
    assert not torch.allclose(scores, best)
    torch.testing.assert_close(best.grad, torch.zeros(2, dtype=torch.double), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_contrast_and_partition_hold_at_every_score(dtype):
    partners = torch.tensor([6e4, -6e4, 0.0]).to(dtype).requires_grad_()
    negatives = torch.tensor([[6e4, 0.0], [-6e4, 0.0], [3.0, -3.0]]).to(dtype).requires_grad_()
    value = noise_contrastive(partners, negatives, 2.0, rows=1000)
    value.backward()
    expected = noise_contrastive(partners.detach().double(), negatives.detach().double(), 2.0, rows=1000)
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-5, atol=0)
    assert partners.grad.isfinite().all()
    assert negatives.grad.isfinite().all()
    inputs = randn(2).requires_grad_(), randn(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, n: noise_contrastive(p, n, 0.3, rows=9), inputs)


def test_affinities_by_a_plain_formula():
    student, teacher = (unit(4, 3), unit(4, 3, seed=1)), (unit(4, 6, seed=2), unit(4, 6, seed=3))
    logits, wanted = 20 * student[0] @ student[1].T, 30 * teacher[0] @ teacher[1].T
    expected = 0.5 * (
        functional.cross_entropy(logits, wanted.softmax(1)) + functional.cross_entropy(logits.T, wanted.T.softmax(1))
    )
    value = affinity_cross_entropy(student, teacher, student_scale=20.0, teacher_scale=30.0)
    torch.testing.assert_close(value, expected)


def test_affinities_are_met_by_any_rotation_of_the_teacher_and_by_nothing_nearby():
    images, texts = unit(4, 6), unit(4, 6, seed=1)
    turn = torch.linalg.qr(randn(6, 6, seed=2))[0]
    student = (images @ turn).requires_grad_(), (texts @ turn).requires_grad_()
    value = affinity_cross_entropy(student, (images, texts), student_scale=5.0, teacher_scale=5.0)
    gradients = torch.autograd.grad(value, student)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
    p = (5 * images @ texts.T).softmax(1)
    q = (5 * texts @ images.T).softmax(1)
    entropy = -0.5 * ((p * p.log()).sum(1) + (q * q.log()).sum(1)).mean()
    torch.testing.assert_close(value, entropy)
    other = affinity_cross_entropy((unit(4, 6, seed=4), texts), (images, texts), student_scale=5.0, teacher_scale=5.0)
    assert other > entropy


def test_mistakes_are_explained():
    with pytest.raises(RecipeError, match="need one shape"):
        info_nce(randn(4, 3), randn(3, 3))
    with pytest.raises(RecipeError, match=r"need labels \[n\]; got \[4, 3\] and \[3\]"):
        supervised_contrastive(randn(4, 3), torch.zeros(3))
    with pytest.raises(RecipeError, match="temperature must be positive; got 0"):
        nt_xent(randn(4, 3), randn(4, 3), 0.0)
    with pytest.raises(RecipeError, match="4 anchors need indices of as many rows"):
        bank_scores(randn(4, 3), randn(9, 3), torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(RecipeError, match=r"M at least 1; got \[4\] and \[4, 0\]"):
        noise_contrastive(randn(4), randn(4, 0), 0.0, rows=9)
    with pytest.raises(RecipeError, match="got 4, 3, 4, 4"):
        affinity_cross_entropy((randn(4, 3), randn(3, 3)), (randn(4, 3), randn(4, 3)))

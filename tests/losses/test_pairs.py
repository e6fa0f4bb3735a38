"""The contrastive loss of pairs: CLIP's where all texts differ, and even over those that say the same."""

import pytest
import torch
from torch.nn import functional

from attar import losses
from attar.errors import RecipeError


@pytest.fixture
def vectors():
    rng = torch.Generator().manual_seed(0)
    return [functional.normalize(torch.randn(5, 4, generator=rng, dtype=torch.double)) for _ in range(2)]


def test_it_is_clip_s_cross_entropy_in_both_directions(vectors):
    images, texts = vectors
    scores = 7.0 * images @ texts.T
    labels = torch.arange(5)
    expected = (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)) / 2
    torch.testing.assert_close(losses.pair_cross_entropy(images, texts, 7.0), expected)
    both = losses.info_nce(images, texts, 1 / 7), losses.info_nce(texts, images, 1 / 7)
    torch.testing.assert_close(losses.pair_cross_entropy(images, texts, 7.0), sum(both) / 2)


def test_pairs_of_a_group_are_right_answers_to_each_other(vectors):
    images, texts = vectors
    groups = torch.tensor([3, 1, 3, 0, 1])
    wanted = (
        torch.tensor(
            [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 0, 2, 0], [0, 1, 0, 0, 1]], dtype=torch.double
        )
        / 2
    )
    scores = 3.0 * images @ texts.T
    expected = (functional.cross_entropy(scores, wanted) + functional.cross_entropy(scores.T, wanted)) / 2
    torch.testing.assert_close(losses.pair_cross_entropy(images, texts, 3.0, groups=groups), expected)
    alone = losses.pair_cross_entropy(images, texts, 3.0, groups=torch.arange(5))
    torch.testing.assert_close(alone, losses.pair_cross_entropy(images, texts, 3.0))


def test_the_derivative_is_that_of_finite_differences(vectors):
    images, texts = (v.requires_grad_() for v in vectors)
    scale = torch.tensor(4.0, dtype=torch.double, requires_grad=True)
    groups = torch.tensor([0, 1, 0, 2, 2])
    assert torch.autograd.gradcheck(
        lambda i, u, s: losses.pair_cross_entropy(i, u, s, groups=groups), (images, texts, scale)
    )


def test_reductions_agree_and_half_precision_is_finite(vectors):
    images, texts = vectors
    each = losses.pair_cross_entropy(images, texts, 9.0, reduction="none")
    assert each.shape == (5,)
    torch.testing.assert_close(each.mean(), losses.pair_cross_entropy(images, texts, 9.0))
    half = losses.pair_cross_entropy(images.half(), texts.half(), 100.0)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), losses.pair_cross_entropy(images, texts, 100.0), rtol=1e-2, atol=1e-2)


def test_shapes_that_do_not_pair_are_refused(vectors):
    images, texts = vectors
    with pytest.raises(RecipeError, match="with groups"):
        losses.pair_cross_entropy(images, texts[:4], 1.0)
    with pytest.raises(RecipeError, match="with groups"):
        losses.pair_cross_entropy(images, texts, 1.0, groups=torch.arange(4))

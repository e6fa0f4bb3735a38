"""Losses of generator and discriminator, and the gap of two denoisers: by hand, and by what they must lead to."""

import math

import pytest
import torch

from attar.errors import RecipeError
from attar.losses.adversarial import fooling_loss, telling_loss
from attar.losses.denoising import replaced_gradient
from attar.losses.score import distribution_gap


def test_the_hinge_stops_where_samples_are_told_apart_by_one():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert telling_loss(real, fake).tolist() == [0.0, 0.5 * (0.5 + 1.0), 0.5 * (2.0 + 2.0)]
    assert fooling_loss(fake).tolist() == [3.0, 0.0, -1.0]


def test_softplus_is_the_cross_entropy_of_two_kinds():
    real, fake = torch.tensor([0.7]), torch.tensor([-0.2])
    expected = -0.5 * (math.log(1 / (1 + math.exp(-0.7))) + math.log(1 - 1 / (1 + math.exp(0.2))))
    assert telling_loss(real, fake, "softplus").item() == pytest.approx(expected, abs=1e-6)
    assert fooling_loss(fake, "softplus").item() == pytest.approx(math.log(1 + math.exp(0.2)), abs=1e-6)


@pytest.mark.parametrize("game", ["hinge", "softplus"])
def test_the_players_pull_the_logits_of_made_samples_apart(game):
    fake = torch.tensor([0.3], requires_grad=True)
    (up,) = torch.autograd.grad(fooling_loss(fake, game).sum(), fake)
    (down,) = torch.autograd.grad(telling_loss(torch.zeros(1), fake, game).sum(), fake)
    assert up.item() < 0 < down.item()


def test_an_unknown_game_is_refused():
    for call in (
        lambda: fooling_loss(torch.zeros(1), "hing"),
        lambda: telling_loss(torch.zeros(1), torch.zeros(1), "w"),
    ):
        with pytest.raises(RecipeError, match="unknown game"):
            call()


def test_the_gap_is_normalised_by_each_samples_own_distance():
    x = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    real = torch.tensor([[0.0, 1.0], [0.5, -0.5]])
    fake = torch.tensor([[1.5, 1.0], [0.5, 0.0]])
    gap = distribution_gap(x, real, fake, floor=0.0)
    assert torch.allclose(gap, torch.tensor([[1.5 / 1.5, 0.0], [0.0, 0.5 / 0.5]]))
    with pytest.raises(RecipeError, match="gap"):
        distribution_gap(x, real, fake[:1])


def test_going_down_the_gap_brings_made_samples_to_the_data():
    """Two Gaussians of one width: denoisers differ by a constant, and the gap points from one mean to the other."""
    mean, width, sigma = 2.0, 0.5, 1.0
    made = torch.zeros(16, 32, requires_grad=True)
    noise = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))

    def denoised(x_t, centre):
        return centre + width**2 / (width**2 + sigma**2) * (x_t - centre)

    for _ in range(60):
        x_t = made.detach() + sigma * noise
        gap = distribution_gap(made, denoised(x_t, mean), denoised(x_t, made.detach().mean()))
        (gradient,) = torch.autograd.grad(replaced_gradient(made, gap).sum(), made)
        assert torch.allclose(gradient, gap, atol=1e-5)
        made = (made - 0.1 * gradient).detach().requires_grad_(True)
    assert made.mean().item() == pytest.approx(mean, abs=0.15)

"""Tangents equal closed forms however they are taken, and one bad sample spoils no other."""

import math

import pytest
import torch

from attar.diffusion import Mixture, TrigFlow, along, normalised_tangent, scm_tangent
from attar.errors import RecipeError


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("how", ["jvp", "central", "semi-continuous"])
def test_derivative_along_a_direction_by_hand(how):
    x, t = randn(3, 2), torch.tensor([0.3, 0.7, 1.1]).double()
    slope, rate = randn(3, 2, seed=1), torch.tensor([1.0, -2.0, 0.5]).double()
    output, derivative = along(lambda x, t: x**2 * torch.sin(t)[:, None], x, t, slope, rate, how=how)
    sin, cos = torch.sin(t)[:, None], torch.cos(t)[:, None]
    torch.testing.assert_close(output, x**2 * sin)
    expected = 2 * x * slope * sin + x**2 * cos * rate[:, None]
    torch.testing.assert_close(derivative, expected, rtol=0, atol=2e-3 if how == "semi-continuous" else 1e-6)


@pytest.mark.parametrize("how", ["central", "semi-continuous"])
def test_differences_of_a_network_with_dropout_have_the_same_masks(how):
    torch.manual_seed(0)
    dropout = torch.nn.Dropout(0.5)
    x, t = randn(3, 20), torch.tensor([0.3, 0.7, 1.1]).double()
    torch.manual_seed(1)
    mask = dropout(torch.ones_like(x))
    torch.manual_seed(1)
    given = (x, t, torch.ones_like(x), torch.ones_like(t))
    _, derivative = along(lambda x, t: dropout(x * t[:, None]), *given, how=how)
    torch.testing.assert_close(derivative, mask * (x + t[:, None]), rtol=0, atol=2e-3)


def test_central_differences_stay_within_the_times_of_a_process():
    t, asked = torch.tensor([0.0, 0.5, 1.0]).double(), []

    def function(x, t):
        asked.append(t)
        return x * torch.sin(t)[:, None]

    x, rate = randn(3, 2), torch.tensor([1.0, 1.0, 1.0]).double()
    for way in (1, -1):
        _, derivative = along(function, x, t, torch.zeros_like(x), way * rate, how="central", width=1e-3, highest=1.0)
        torch.testing.assert_close(derivative, way * x * torch.cos(t)[:, None], rtol=0, atol=2e-3)
    assert 0.0 <= min(float(t.min()) for t in asked) < max(float(t.max()) for t in asked) <= 1.0
    _, still = along(function, x, t, x, 0 * rate, how="central", highest=1.0)
    torch.testing.assert_close(still, x * torch.sin(t)[:, None])


@pytest.mark.parametrize("conditional", [False, True])
def test_a_real_unet_with_attention_has_an_exact_derivative(conditional):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    sizes |= {"sample_size": 8, "in_channels": 3, "out_channels": 3}
    if conditional:
        blocks = {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        }
        unet = diffusers.UNet2DConditionModel(**sizes, **blocks, cross_attention_dim=8).double()
        told = (randn(2, 5, 8, seed=3),)
    else:
        blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
        blocks |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
        unet, told = diffusers.UNet2DModel(**sizes, **blocks).double(), ()
    x, t = randn(2, 3, 8, 8), torch.tensor([0.5, 0.7]).double()
    given = (lambda x, t: unet(x, t, *told).sample, x, t, randn(2, 3, 8, 8, seed=1), torch.ones(2).double())
    _, exact = along(*given)
    _, difference = along(*given, how="central", width=1e-2)
    torch.testing.assert_close(exact, difference, rtol=0, atol=2e-3 * float(exact.abs().max()))


@pytest.mark.parametrize("data", [1.0, 0.5])
def test_scm_tangent_is_cos_t_times_the_derivative_of_the_consistency_function(data):
    view = Mixture.ring(std=0.4).view(TrigFlow(sigma_data=data))
    x, t, slope = randn(4, 2), torch.tensor([0.2, 0.6, 1.0, 1.4]).double(), randn(4, 2, seed=2)
    cos, sin = torch.cos(t)[:, None], torch.sin(t)[:, None]

    def network(scaled, t):
        return view.predict(data * scaled, t, kind="trig")

    output, product = along(network, x / data, t, cos * sin * slope / data, (cos * sin)[:, 0])
    got = scm_tangent(output, product, x, t, slope, sigma_data=data)
    _, derivative = torch.func.jvp(view.x0, (x, t), (slope, torch.ones_like(t)))
    torch.testing.assert_close(got, cos * derivative)
    cold = scm_tangent(output, product, x, t, slope, sigma_data=data, warmup=0.0)
    torch.testing.assert_close(cold, -cos.square() * (data * output - slope))


def test_the_exact_consistency_function_has_no_tangent_along_its_own_flow():
    data, process = Mixture.gaussian(torch.tensor([0.3, -0.2]), 0.6), TrigFlow(sigma_data=0.5)
    x, t = randn(4, 2), torch.tensor([0.2, 0.6, 1.0, 1.4]).double()
    slope = data.view(process).velocity(x, t)

    def function(x, t):
        gain = (process.alpha(t) ** 2 * 0.36 + process.sigma(t) ** 2).rsqrt()[:, None] * 0.6
        mean = torch.tensor([0.3, -0.2]).double()
        return mean + gain * (x - process.alpha(t)[:, None] * mean)

    _, derivative = along(function, x, t, slope, torch.ones_like(t))
    torch.testing.assert_close(derivative, torch.zeros_like(x), rtol=0, atol=1e-7)


def test_normalising_by_hand_and_lost_samples():
    tangent = torch.tensor([[3.0, 4.0], [math.nan, 1.0], [0.0, 0.0], [math.inf, 0.0]])
    got, finite = normalised_tangent(tangent, 0.1)
    torch.testing.assert_close(got, torch.tensor([[3 / 5.1, 4 / 5.1], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert finite.tolist() == [True, False, True, False]


def test_mistakes_are_told():
    x, t = randn(2, 2), randn(2)
    with pytest.raises(RecipeError, match="did you mean 'central'"):
        along(lambda x, t: x, x, t, x, t, how="centre")
    with pytest.raises(RecipeError, match="width"):
        along(lambda x, t: x, x, t, x, t, width=0.0)
    with pytest.raises(RecipeError, match="positive"):
        normalised_tangent(x, 0.0)

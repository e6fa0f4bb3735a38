"""The closed-form mixture is what it says: scores are gradients, flow maps solve the ODE."""

import pytest
import torch

from attar.diffusion import VE, Cosine, Flow, Mixture, TrigFlow, integrate, runge_kutta2
from attar.errors import RecipeError

PROCESSES = [Cosine(), VE(t_max=10.0), Flow(), TrigFlow(sigma_data=0.7)]
LINE = Mixture(
    torch.tensor([[-1.0], [1.5]]).double(),
    torch.tensor([0.3, 0.6]).double(),
    torch.tensor([1.0, 3.0]).double(),
    torch.tensor([0, 1]),
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 3, -1, 7, 2])])
def test_score_is_the_gradient_of_the_log_density(process, labels):
    ring, x = Mixture.ring(std=0.4), randn(5, 2)
    t = torch.linspace(0.2, 0.8, 5, dtype=torch.double) * process.t_max
    expected = torch.func.grad(lambda x: ring.log_density(x, t, process, labels).sum())(x)
    torch.testing.assert_close(ring.view(process).score(x, t, labels), expected)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_predictions_add_up_to_the_input_and_hold_at_both_ends(process):
    view, x = Mixture.ring().view(process), randn(4, 2)
    for share in (0.0, 0.3, 1.0):
        t = torch.tensor(share * process.t_max, dtype=torch.double)
        x0, eps = view.x0_eps(x, t)
        torch.testing.assert_close(process.diffuse(x0, eps, t), x)
    torch.testing.assert_close(view.x0(x, torch.tensor(0.0)), x)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("mixture", [LINE, Mixture.gaussian(torch.tensor([0.8]), 0.5)], ids=["two", "one"])
def test_flow_map_solves_the_probability_flow_ode(process, mixture):
    x, t = randn(6, 1), torch.tensor(0.8 * process.t_max, dtype=torch.double)
    s = 0.2 * t
    grid = torch.linspace(float(t), float(s), 400, dtype=torch.double)
    numerical = integrate(mixture.view(process), x, grid, step=runge_kutta2)
    torch.testing.assert_close(mixture.flow_map(x, t, s, process), numerical, rtol=0, atol=3e-4)
    there_and_back = mixture.flow_map(mixture.flow_map(x, t, s, process), s, t, process)
    torch.testing.assert_close(there_and_back, x, rtol=0, atol=1e-9)


def test_samples_have_the_moments_and_the_classes_of_the_mixture():
    x = LINE.sample(20000, torch.Generator().manual_seed(0))
    mean = 0.25 * -1.0 + 0.75 * 1.5
    variance = 0.25 * (0.09 + 1.0) + 0.75 * (0.36 + 2.25) - mean**2
    assert float(x.mean()) == pytest.approx(mean, abs=0.03)
    assert float(x.var()) == pytest.approx(variance, abs=0.04)
    first = Mixture.ring(std=0.01).sample(50, torch.Generator().manual_seed(0), torch.full((50,), 2))
    torch.testing.assert_close(first.mean(0), torch.tensor([0.0, 2.0]).double(), rtol=0, atol=0.01)


def test_mistakes_are_told():
    with pytest.raises(RecipeError, match="no component"):
        Mixture.ring(4).view(Flow()).x0(randn(2, 2), torch.tensor(0.5), torch.tensor([0, 9]))
    with pytest.raises(RecipeError, match="one dimension only"):
        Mixture.ring().flow_map(randn(2, 2), torch.tensor(0.5), torch.tensor(0.2), Flow())
    with pytest.raises(RecipeError, match="means"):
        Mixture(torch.ones(2, 2), torch.ones(3), torch.ones(2), torch.zeros(2))
    with pytest.raises(RecipeError, match="transfer"):
        Mixture.ring().view(Flow()).x0(randn(2, 2), torch.tensor(1.5))

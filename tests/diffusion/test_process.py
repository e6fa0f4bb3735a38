"""Processes agree with their definitions, derivatives and inverses; predictions convert without loss."""

import math

import pytest
import torch

from attar.diffusion import (
    VE,
    Cosine,
    Flow,
    TrigFlow,
    VPContinuous,
    VPDiscrete,
    check_prediction,
    coefficients,
    convert,
    to_x0_eps,
)
from attar.errors import RecipeError

PROCESSES = [VPContinuous(), VPDiscrete.linear(), VPDiscrete.scaled_linear(), Cosine(), Cosine(offset=0.008), VE()]
PROCESSES += [Flow(), TrigFlow(), TrigFlow(sigma_data=0.5)]
KINDS = ["x0", "eps", "v", "velocity", "edm", "trig"]


def name(process):
    return type(process).__name__


def times(process, n=7):
    return torch.linspace(0.113, 0.957, n, dtype=torch.double) * process.t_max


def defined(process, kinds=KINDS):
    for kind in kinds:
        try:
            check_prediction(kind, process)
        except RecipeError:
            continue
        yield kind


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_rates_are_the_derivatives_of_alpha_and_sigma(process):
    t = times(process)
    for value, rate in [(process.alpha, process.alpha_rate), (process.sigma, process.sigma_rate)]:
        _, tangent = torch.func.jvp(value, (t,), (torch.ones_like(t),))
        torch.testing.assert_close(rate(t), tangent, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_time_is_recovered_from_angle_and_from_log_snr(process):
    t = times(process)
    torch.testing.assert_close(process.time_at(process.angle(t)), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.time_of_log_snr(process.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    ratio = process.alpha(t) / process.sigma(t)
    torch.testing.assert_close(process.log_snr(t), ratio.log())
    torch.testing.assert_close(torch.tan(process.angle(t)), 1 / ratio)


@pytest.mark.parametrize("process", PROCESSES[:5], ids=name)
def test_variance_is_preserved(process):
    t = times(process)
    torch.testing.assert_close(process.alpha(t).square() + process.sigma(t).square(), torch.ones_like(t))


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_both_levels_at_once_are_each_of_them_with_dimensions_for_samples(process):
    t, like = times(process), torch.zeros(len(times(process)), 3, 2)
    alpha, sigma = process.levels(t, like)
    assert alpha.shape == sigma.shape == (len(t), 1, 1)
    torch.testing.assert_close(alpha.flatten(), process.alpha(t), rtol=0, atol=1e-15)
    torch.testing.assert_close(sigma.flatten(), process.sigma(t), rtol=0, atol=1e-15)


def test_levels_by_hand():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.double)
    torch.testing.assert_close(Flow().alpha(t), torch.tensor([1.0, 0.75, 0.0], dtype=torch.double))
    torch.testing.assert_close(Cosine().alpha(t)[1], torch.tensor(math.cos(math.pi / 8), dtype=torch.double))
    torch.testing.assert_close(TrigFlow(sigma_data=0.5).sigma(t)[1], torch.tensor(0.5 * math.sin(0.25)).double())
    torch.testing.assert_close(VE().sigma(t), t)
    # β_min = 0.1, β_max = 20: log α_1 = −19.9/4 − 0.05
    torch.testing.assert_close(VPContinuous().alpha(t)[2], torch.tensor(math.exp(-5.025), dtype=torch.double))


def test_discrete_levels_are_the_products_and_begin_in_clean_data():
    products = torch.tensor([0.9, 0.5, 0.0])
    process = VPDiscrete(products)
    t = process.time_of_step(torch.tensor([-1, 0, 1, 2]))
    expected = torch.tensor([1.0, 0.9, 0.5, 0.0], dtype=torch.double)
    torch.testing.assert_close(process.alpha(t).square(), expected, rtol=1e-7, atol=1e-12)
    assert process.label(t).tolist() == pytest.approx([0.0, 0.0, 1.0, 2.0])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.double)
    linear = VPDiscrete.linear()
    torch.testing.assert_close(linear.alpha(linear.time_of_step(499)).square(), (1 - betas)[:500].prod())


def test_grids_fall_from_noise_to_data():
    for process in PROCESSES:
        grid = process.grid(6)
        assert len(grid) == 7
        assert grid[0] == pytest.approx(process.t_max)
        assert grid[-1] == 0
        assert bool((grid[1:] < grid[:-1]).all())
        assert process.grid(1).tolist() == pytest.approx([process.t_max, 0.0])
    assert VE().grid(4)[-2] == pytest.approx(0.002)
    root = (80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2  # the middle of three levels
    assert VE().grid(3)[1] == pytest.approx(root**7)
    assert Flow(shift=3.0).grid(2)[1] == pytest.approx(0.75)  # 3 · ½ / (1 + 2 · ½)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_every_conversion_is_undone_by_its_inverse(process):
    rng = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 5, 3, 2, 2, generator=rng, dtype=torch.double)
    t = times(process, 5)
    x = process.diffuse(x0, eps, t)
    for source in defined(process):
        a, b = (value.reshape(-1, 1, 1, 1) for value in coefficients(source, process, t))
        output = a * x0 + b * eps
        for value, expected in zip(to_x0_eps(output, x, t, process, source), (x0, eps), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
        for target in defined(process):
            there = convert(output, x, t, process, source=source, target=target)
            back = convert(there, x, t, process, source=target, target=source)
            torch.testing.assert_close(back, output, rtol=1e-9, atol=1e-9)


def test_predictions_by_the_formulas_of_their_papers():
    rng = torch.Generator().manual_seed(2)
    x0, eps = torch.randn(2, 4, 3, generator=rng, dtype=torch.double)
    t = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.double)
    column = t[:, None]

    def of(process, kind):
        x = process.diffuse(x0, eps, t)
        return x, convert(x0, x, t, process, source="x0", target=kind)

    torch.testing.assert_close(of(Flow(), "velocity")[1], eps - x0)
    vp = Cosine()
    alpha, sigma = vp.alpha(column), vp.sigma(column)
    torch.testing.assert_close(of(vp, "v")[1], alpha * eps - sigma * x0)
    x, output = of(VE(sigma_data=0.5), "edm")
    skip = 0.25 / (column.square() + 0.25)
    out = column * 0.5 / (column.square() + 0.25).sqrt()
    torch.testing.assert_close(skip * x + out * output, x0)
    x, output = of(TrigFlow(sigma_data=0.5), "trig")
    torch.testing.assert_close(column.cos() * x - column.sin() * 0.5 * output, x0)
    torch.testing.assert_close(column.sin() * x + column.cos() * 0.5 * output, 0.5 * eps)


@pytest.mark.parametrize(("process", "kind"), [(Flow(), "velocity"), (Cosine(), "v"), (TrigFlow(), "trig")])
def test_both_ends_are_exact_for_predictions_that_hold_there(process, kind):
    rng = torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, 2, 3, generator=rng, dtype=torch.double)
    t = torch.tensor([0.0, process.t_max], dtype=torch.double)
    a, b = (value[:, None] for value in coefficients(kind, process, t))
    got = to_x0_eps(a * x0 + b * eps, process.diffuse(x0, eps, t), t, process, kind)
    torch.testing.assert_close(got[0], x0)
    torch.testing.assert_close(got[1], eps)


def test_float32_near_the_ends_keeps_its_digits():
    rng = torch.Generator().manual_seed(4)
    x0, eps = torch.randn(2, 8, 3, generator=rng)
    for kind in ("v", "velocity"):
        process = Cosine()
        t = torch.tensor(1e-4)
        x = process.diffuse(x0, eps, t)
        output = convert(x0.double(), x.double(), t, process, source="x0", target=kind).float()
        got = to_x0_eps(output, x, t, process, kind)[0]
        assert got.dtype == torch.float32
        assert float((got - x0).abs().max()) < 1e-6


def test_what_has_no_meaning_is_refused_with_a_reason():
    x, t = torch.ones(2, 3), torch.tensor(0.5)
    with pytest.raises(RecipeError, match="did you mean 'eps'"):
        check_prediction("epss", Flow())
    with pytest.raises(RecipeError, match="flow matching the network's output is 'velocity'"):
        convert(x, x, t, Flow(), source="v", target="x0")
    with pytest.raises(RecipeError, match="needs α > 0"):
        to_x0_eps(x, x, torch.tensor(1.0), Flow(), "eps")
    with pytest.raises(RecipeError, match="needs σ > 0"):
        to_x0_eps(x, x, torch.tensor(0.0), Flow(), "x0")
    with pytest.raises(RecipeError, match="twice the channels"):
        to_x0_eps(torch.ones(2, 6), x, t, Flow(), "velocity")
    with pytest.raises(RecipeError, match=r"runs from t = 0 \(data\) to t = 1"):
        Flow().inside(torch.tensor([0.5, 999.0]))
    with pytest.raises(RecipeError, match="got times from nan"):
        Flow().inside(torch.tensor([math.nan]))
    with pytest.raises(RecipeError, match="one each"):
        Flow().diffuse(x, x, torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(RecipeError, match="falling numbers"):
        VPDiscrete(torch.tensor([0.5, 0.9]))
    with pytest.raises(RecipeError, match="at least one step"):
        VE().grid(0)

"""Moving a generator to another process loses nothing, at both ends and in its derivatives."""

import math

import pytest
import torch

from attar.diffusion import (
    VE,
    Cosine,
    Denoiser,
    Flow,
    Mixture,
    TrigFlow,
    VPContinuous,
    VPDiscrete,
    transfer,
    transfer_state,
    transfer_time,
)
from attar.errors import RecipeError

PROCESSES = [VPContinuous(), VPDiscrete.linear(), Cosine(), VE(), Flow(), TrigFlow(), TrigFlow(sigma_data=0.5)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def name(process):
    return type(process).__name__


def field(x, label, condition=None):
    return torch.sin(1.3 * x) * (1 + label[:, None]) + 0.2 * x


@pytest.mark.parametrize("source", PROCESSES, ids=name)
@pytest.mark.parametrize("target", PROCESSES, ids=name)
def test_the_exact_denoiser_of_one_process_becomes_that_of_another(source, target):
    ring, x = Mixture.ring(std=0.3), randn(5, 2)
    angles = torch.linspace(0.2, 1.3, 5, dtype=torch.double)
    t = target.time_at(angles)
    moved = transfer(ring.view(source), target)
    for got, expected in zip(moved.x0_eps(x, t), ring.view(target).x0_eps(x, t), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(moved.velocity(x, t), ring.view(target).velocity(x, t), rtol=1e-7, atol=1e-8)


def test_flow_to_trigflow_is_the_formula_of_sana_sprint():
    data, x = 0.5, randn(4, 2)
    t = torch.tensor([0.0, 0.4, 1.1, math.pi / 2], dtype=torch.double)
    moved = transfer(Denoiser(field, Flow(), "velocity"), TrigFlow(sigma_data=data))
    # their x is normalised: the flow teacher lives on data and noise divided by σ_d, so σ_d = 1 here
    unit = transfer(Denoiser(field, Flow(), "velocity"), TrigFlow(sigma_data=1.0))
    flow_t = (torch.sin(t) / (torch.sin(t) + torch.cos(t)))[:, None]
    length = (flow_t.square() + (1 - flow_t).square()).sqrt()
    flow_x = x * length
    v = field(flow_x, flow_t[:, 0])
    expected = ((1 - 2 * flow_t) * flow_x + (1 - 2 * flow_t + 2 * flow_t.square()) * v) / length
    torch.testing.assert_close(unit.predict(x, t, kind="trig"), expected)
    assert moved.predict(x, t, kind="trig").isfinite().all()


def test_flow_to_trigflow_is_the_formula_of_rcm():
    x, t = randn(3, 2), torch.tensor([0.3, 0.8, 1.5], dtype=torch.double)
    moved = transfer(Denoiser(field, Flow(), "velocity"), TrigFlow())
    total = (torch.cos(t) + torch.sin(t))[:, None]
    net = field(x / total, torch.sin(t) / total[:, 0])
    x0 = x / total - torch.sin(t)[:, None] / total * net
    torch.testing.assert_close(moved.x0(x, t), x0)
    torch.testing.assert_close(
        moved.predict(x, t, kind="trig"), (torch.cos(t)[:, None] * x - x0) / torch.sin(t)[:, None]
    )


def test_edm_to_trigflow_scales_by_the_cosine_of_the_arctangent():
    x, sigma = randn(3, 2), torch.tensor([0.1, 1.0, 80.0], dtype=torch.double)
    target = TrigFlow(sigma_data=0.5)
    t = transfer_time(VE(), target, sigma)
    torch.testing.assert_close(t, torch.arctan(sigma / 0.5))
    torch.testing.assert_close(transfer_state(VE(), target, x, sigma), torch.cos(t)[:, None] * x)
    # EDM's F and TrigFlow's are one function up to the sign (Lu and Song 2024, appendix A)
    edm = Denoiser(lambda x, label, condition: torch.sin(x), VE(sigma_data=0.5), "edm")
    got = transfer(edm, target).predict(torch.cos(t)[:, None] * x, t, kind="trig")
    torch.testing.assert_close(got, -edm.output(x, sigma))


@pytest.mark.parametrize(
    ("source", "kind"),
    [(Flow(), "velocity"), (VE(), "edm"), (Cosine(), "v"), (VPDiscrete.linear(), "v"), (VPContinuous(), "eps")],
)
def test_a_jvp_passes_through_and_equals_finite_differences(source, kind):
    moved = transfer(Denoiser(field, source, kind), TrigFlow(sigma_data=0.5))
    x, t = randn(3, 2), torch.tensor([0.31, 0.77, 1.21], dtype=torch.double)
    direction, rate = randn(3, 2, seed=1), torch.tensor([0.5, -1.0, 2.0], dtype=torch.double)

    def function(x, t):
        return moved.predict(x, t, kind="trig")

    _, tangent = torch.func.jvp(function, (x, t), (direction, rate))
    h = 1e-6
    numerical = (function(x + h * direction, t + h * rate) - function(x - h * direction, t - h * rate)) / (2 * h)
    torch.testing.assert_close(tangent, numerical, rtol=1e-4, atol=1e-5)


def test_the_consistency_function_of_scm_has_the_derivative_its_paper_says():
    """df/dt along the flow = −cos t (σ_d F − dx/dt) − sin t (x + σ_d dF/dt), and the rearranged JVP is one product."""
    data, x, t = 0.5, randn(4, 2), torch.tensor([0.2, 0.6, 1.0, 1.4], dtype=torch.double)
    view = transfer(Denoiser(field, Flow(), "velocity"), TrigFlow(sigma_data=data))

    def network(scaled, t):
        return view.predict(data * scaled, t, kind="trig")

    def consistency(x, t):
        return torch.cos(t)[:, None] * x - torch.sin(t)[:, None] * data * network(x / data, t)

    slope = Mixture.ring().view(TrigFlow(sigma_data=data)).velocity(x, t)
    _, total = torch.func.jvp(consistency, (x, t), (slope, torch.ones_like(t)))
    cos, sin = torch.cos(t)[:, None], torch.sin(t)[:, None]
    output, rate = torch.func.jvp(network, (x / data, t), (slope / data, torch.ones_like(t)))
    torch.testing.assert_close(total, -cos * (data * output - slope) - sin * (x + data * rate))
    _, scaled = torch.func.jvp(network, (x / data, t), (cos * sin * slope / data, (cos * sin)[:, 0]))
    torch.testing.assert_close(scaled, cos * sin * rate)


def test_float32_is_moved_within_1e_5_and_what_is_home_stays():
    view = Denoiser(field, Flow(), "velocity")
    x, t = randn(6, 2), torch.linspace(0.01, 1.56, 6, dtype=torch.double)
    moved = transfer(view, TrigFlow())
    got = moved.predict(x.float(), t.float(), kind="trig")
    assert got.dtype == torch.float32
    assert float((got - moved.predict(x, t, kind="trig")).abs().max()) < 1e-5
    assert transfer(view, Flow()) is view


def test_a_ratio_that_the_source_does_not_reach_is_refused():
    moved = transfer(Mixture.ring().view(VE()), TrigFlow())
    moved.x0(randn(2, 2), torch.tensor(math.atan(80.0)))
    with pytest.raises(RecipeError, match="VE runs from"):
        moved.x0(randn(2, 2), torch.tensor(math.pi / 2))

"""Solvers have their order, keep the marginals, and know their edge cases, on data whose answer is in closed form."""

import functools
import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from attar.diffusion import (
    VE,
    Cosine,
    Flow,
    Mixture,
    TrigFlow,
    VPContinuous,
    ancestral,
    cm_boundary,
    ddim,
    dpmpp_1,
    dpmpp_2m,
    drawing,
    eps_of_jump,
    euler,
    heun,
    integrate,
    lcm_boundary,
    multistep_consistency,
    overshooting,
    renoise,
    runge_kutta2,
    segment_edge,
    segmented,
    start,
    x0_of_jump,
)
from attar.diffusion.process import Process
from attar.diffusion.view import View
from attar.errors import RecipeError

LINE = Mixture(
    torch.tensor([[-1.0], [1.5]]).double(),
    torch.tensor([0.5, 0.6]).double(),
    torch.tensor([1.0, 3.0]).double(),
    torch.tensor([0, 1]),
)
PROCESSES = [Cosine(), VE(t_max=8.0), Flow(), TrigFlow(sigma_data=0.7)]
ORDERS = [(ddim, 1), (dpmpp_1, 1), (dpmpp_2m, 2), (euler, 1), (heun, 2), (runge_kutta2, 2)]
ORDERS += [(functools.partial(runge_kutta2, place=2 / 3), 2)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def name(value):
    return getattr(value, "__name__", None) or type(value).__name__


def span(process):
    """Two times between which all processes cover the same range of noise."""
    return [process.time_at(torch.tensor(angle, dtype=torch.double)) for angle in (1.2, 0.25)]


@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize(("step", "order"), ORDERS)
def test_halving_the_step_divides_the_error_by_two_to_the_order(process, step, order):
    x, (t, s) = randn(8, 1), span(process)
    exact = LINE.flow_map(x, t, s, process)
    angles = [torch.linspace(1.2, 0.25, n + 1, dtype=torch.double) for n in (64, 128)]
    coarse, fine = (
        float((integrate(LINE.view(process), x, process.time_at(grid), step=step) - exact).square().mean().sqrt())
        for grid in angles
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)
    assert fine < {1: 2e-2, 2: 2e-3}[order]


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_dpmpp_1_and_a_first_dpmpp_2m_are_ddim(process):
    x, (t, s) = randn(5, 1), span(process)
    view = LINE.view(process)
    expected = ddim(view, x, t, s)
    torch.testing.assert_close(dpmpp_1(view, x, t, s), expected)
    torch.testing.assert_close(dpmpp_2m(view, x, t, s, past=[]), expected)
    zero = torch.zeros((), dtype=torch.double)
    torch.testing.assert_close(dpmpp_2m(view, x, t, zero, past=[(torch.tensor(-3.0), x)]), view.x0(x, t))


def test_heun_and_euler_by_hand_on_a_flow():
    view = Mixture.gaussian(torch.zeros(1), 1.0).view(Flow())
    t, s, x = torch.tensor(0.8).double(), torch.tensor(0.4).double(), torch.ones(1, 1).double()

    def slope(x, t):  # x (2t − 1) / ((1 − t)² + t²), from E[ε] − E[x0]
        return x * (2 * t - 1) / ((1 - t) ** 2 + t**2)

    first = slope(1.0, 0.8)
    predicted = 1 - 0.4 * first
    assert float(euler(view, x, t, s)) == pytest.approx(predicted)
    assert float(heun(view, x, t, s)) == pytest.approx(1 - 0.2 * (first + slope(predicted, 0.4)))
    assert float(heun(view, x, t, torch.zeros(()))) == pytest.approx(1 - 0.8 * first)


@pytest.mark.parametrize("process", [Cosine(), VE(t_max=8.0), VPContinuous(), Flow()], ids=name)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_of_any_eta_keeps_the_marginal_of_gaussian_data(process, eta):
    """A step is linear with Gaussian noise, so its variance is followed exactly, without samples."""
    std = 0.7
    view = Mixture.gaussian(torch.zeros(1), std).view(process)
    angles = torch.linspace(1.4, 0.1, 4001, dtype=torch.double)
    times = process.time_at(angles)
    t, s, ones = times[:-1], times[1:], torch.ones(4000, 1).double()  # all steps as one batch
    gains = ddim(view, ones, t, s, eta=eta, draw=torch.zeros_like)
    fresh = ddim(view, 0 * ones, t, s, eta=eta, draw=torch.ones_like)
    variance = (process.alpha(times[0]) * std) ** 2 + process.sigma(times[0]) ** 2
    for gain, noise in zip(gains.flatten().tolist(), fresh.flatten().tolist(), strict=True):
        variance = gain**2 * variance + noise**2
    expected = (process.alpha(times[-1]) * std) ** 2 + process.sigma(times[-1]) ** 2
    assert float(variance / expected) == pytest.approx(1.0, abs=0.0025)


def test_fresh_noise_is_that_of_the_papers():
    zero = torch.zeros(1, 1).double()

    def fresh(process, t, s, step, **options):
        def only(x):
            return torch.ones_like(x)

        view = Mixture.gaussian(torch.zeros(1), 1.0).view(process)
        return float(step(view, zero, t, s, draw=only, **options))

    t, s = torch.tensor(0.7).double(), torch.tensor(0.4).double()
    vp = Cosine()
    share = 1 - vp.alpha(t) ** 2 / vp.alpha(s) ** 2
    assert fresh(vp, t, s, ddim, eta=0.6) == pytest.approx(float(0.6 * vp.sigma(s) / vp.sigma(t) * share.sqrt()))
    ve, t, s = VE(), torch.tensor(5.0).double(), torch.tensor(3.0).double()
    assert fresh(ve, t, s, ancestral) == pytest.approx(math.sqrt(9 * (25 - 9) / 25))
    sde = functools.partial(dpmpp_2m, past=[], stochastic=True)
    assert fresh(ve, t, s, sde) == pytest.approx(3 * math.sqrt(1 - 9 / 25))


def test_stochastic_dpmpp_of_first_order_is_the_ancestral_step():
    x, (t, s) = randn(5, 1), span(Cosine())
    view = LINE.view(Cosine())
    got = dpmpp_2m(view, x, t, s, past=[], stochastic=True, draw=lambda x: torch.full_like(x, 0.3))
    torch.testing.assert_close(got, ancestral(view, x, t, s, draw=lambda x: torch.full_like(x, 0.3)))


def test_progressive_target_lands_where_two_teacher_steps_land():
    process = Cosine()
    view, x = LINE.view(process), randn(5, 1)
    t, middle, s = (torch.tensor(v).double() for v in (0.75, 0.625, 0.5))
    landed = ddim(view, ddim(view, x, t, middle), middle, s)
    target = x0_of_jump(process, x, landed, t, s)
    eps = (x - process.alpha(t) * target) / process.sigma(t)
    torch.testing.assert_close(process.diffuse(target, eps, s), landed)
    zero = torch.zeros(()).double()
    torch.testing.assert_close(x0_of_jump(process, x, landed, t, zero), landed)


@pytest.mark.parametrize("process", [Cosine(), VE(t_max=8.0), Flow()], ids=name)
def test_the_noise_of_a_jump_leads_up_to_where_it_landed_from_clean_data_too(process):
    x, landed = randn(5, 1), randn(5, 1, seed=1)
    t, s = span(process)[::-1]
    x0, eps = x0_of_jump(process, x, landed, t, s), eps_of_jump(process, x, landed, t, s)
    torch.testing.assert_close(process.diffuse(x0, eps, t), x)
    torch.testing.assert_close(process.diffuse(x0, eps, s), landed)
    zero = torch.zeros(()).double()
    torch.testing.assert_close(process.diffuse(x, eps_of_jump(process, x, landed, zero, s), s), landed)


def test_renoising_keeps_the_marginal_and_one_time_a_sample_is_allowed():
    for process in PROCESSES:
        t, s = span(process)
        gain = float(renoise(process, torch.ones(1, 1).double(), s, t, torch.zeros(1, 1)))
        fresh = float(renoise(process, torch.zeros(1, 1).double(), s, t, torch.ones(1, 1)))
        assert gain * float(process.alpha(s)) == pytest.approx(float(process.alpha(t)))
        assert gain**2 * float(process.sigma(s)) ** 2 + fresh**2 == pytest.approx(float(process.sigma(t)) ** 2)
    x, view = randn(2, 1), LINE.view(Cosine())
    t, s = torch.tensor([0.9, 0.5]).double(), torch.tensor([0.3, 0.1]).double()
    for step in (ddim, euler, heun, dpmpp_2m):
        rows = [step(view, x[i : i + 1], t[i], s[i], past=[]) for i in range(2)]
        torch.testing.assert_close(step(view, x, t, s, past=[]), torch.cat(rows))


def test_the_exact_consistency_function_samples_the_data_in_any_number_of_steps():
    process, data = TrigFlow(sigma_data=0.5), Mixture.gaussian(torch.tensor([0.3]), 0.5)

    def function(x, t, condition):
        return data.flow_map(x, t, torch.zeros_like(t), process)

    noise = randn(20000, 1)
    times = process.grid(4)[:-1]
    got = multistep_consistency(
        function, process, start(process, times[0], noise), times, draw=drawing(torch.Generator().manual_seed(1))
    )
    assert float(got.mean()) == pytest.approx(0.3, abs=0.015)
    assert float(got.std()) == pytest.approx(0.5, abs=0.015)


def test_segments_are_joined_by_jumps_to_their_edges():
    process, x = Cosine(), randn(5, 1)
    view, times = LINE.view(process), torch.tensor([0.75, 0.5, 0.25, 0.0]).double()
    torch.testing.assert_close(segmented(view, x, times), integrate(view, x, times, step=ddim))

    def draw(x):
        return torch.full_like(x, 0.2)

    full = segmented(view, x, times, gamma=1.0, draw=draw)

    def function(x, t, condition):
        return view.x0(x, t)

    torch.testing.assert_close(full, multistep_consistency(function, process, x, times[:-1], draw=draw))
    edges = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert segment_edge(torch.tensor([0.1, 0.25, 0.26, 1.0]), edges).tolist() == [0.0, 0.0, 0.25, 0.5]


def test_three_steps_that_overshoot_by_hand():
    """From i/3 to (i − 2)/3 and up to (i − 1)/3; the last step is plain, and nothing is drawn for it."""
    process, x, asked, drawn = Cosine(), randn(5, 1), [], []
    view = LINE.view(process)

    class Counting(View):
        process = Cosine()

        def x0_eps(self, x, t, condition=None):
            asked.append(float(t))
            return view.x0_eps(x, t, condition)

    def draw(x):
        drawn.append(torch.full_like(x, 0.2 + len(drawn)))
        return drawn[-1]

    got = overshooting(Counting(), x, process.grid(3), draw=draw)
    one, two, three, zero = (torch.tensor(v).double() for v in (1 / 3, 2 / 3, 1.0, 0.0))
    gain = process.alpha(two) / process.alpha(one)
    fresh = (process.sigma(two) ** 2 - gain**2 * process.sigma(one) ** 2).sqrt()
    want = gain * ddim(view, x, three, one) + fresh * 0.2
    want = process.alpha(one) * ddim(view, want, two, zero) + process.sigma(one) * 1.2
    torch.testing.assert_close(got, ddim(view, want, one, zero))
    assert asked == pytest.approx([1, 2 / 3, 1 / 3])
    assert len(drawn) == 2
    torch.testing.assert_close(overshooting(view, x, process.grid(1)), ddim(view, x, three, zero))


@dataclass(frozen=True)
class TwiceAsFar(View):
    """The student that a grid's double steps ask for: its DDIM step goes exactly where the ODE of a Gaussian goes."""

    mixture: Mixture
    process: Process
    steps: int

    def x0_eps(self, x, t, condition=None):
        grid = self.process.grid(self.steps)
        beyond = grid[min(int((grid - t).abs().argmin()) + 2, self.steps)]
        x0 = x0_of_jump(self.process, x, self.mixture.flow_map(x, t, beyond, self.process), t, beyond)
        return x0, (x - self.process.alpha(t) * x0) / self.process.sigma(t)


def spread_of_overshooting(view, std, steps):
    """The variance of samples over that of centred Gaussian data, without samples: rows are sources of noise."""
    process, number = view.process, itertools.count(1)
    times = process.grid(steps)
    x = torch.zeros(steps + 1, 1).double()
    x[0] = torch.hypot(process.alpha(times[0]) * std, process.sigma(times[0]))

    def draw(x):
        only = torch.zeros_like(x)
        only[next(number)] = 1.0
        return only

    return float(overshooting(view, x, times, draw=draw).square().sum() / std**2)


@pytest.mark.parametrize("process", [Cosine(), VE(t_max=8.0), Flow(), Flow(shift=3.0)], ids=repr)
def test_steps_that_overshoot_keep_the_law_of_the_data(process):
    std = 0.7
    data = Mixture.gaussian(torch.zeros(1), std)
    for steps in (1, 2, 3, 6):
        assert spread_of_overshooting(TwiceAsFar(data, process, steps), std, steps) == pytest.approx(1.0, abs=1e-9)
    off = [abs(spread_of_overshooting(data.view(process), std, steps) - 1) for steps in (100, 200)]
    assert off[1] < 0.06
    assert math.log2(off[0] / off[1]) == pytest.approx(1, abs=0.2)  # DDIM's own order


def test_consistency_boundaries_by_hand():
    skip, out = lcm_boundary(torch.tensor([0, 1]))
    assert skip.tolist() == pytest.approx([1.0, 0.25 / 100.25])
    assert out.tolist() == pytest.approx([0.0, 10 / math.sqrt(100.25)])
    skip, out = cm_boundary(torch.tensor([0.002, 1.002], dtype=torch.double))
    assert skip.tolist() == pytest.approx([1.0, 0.25 / 1.25])
    assert out.tolist() == pytest.approx([0.0, 0.5 / math.sqrt(1.002**2 + 0.25)])


def test_mistakes_are_told():
    view, x = LINE.view(Flow()), randn(2, 1)
    t, s = torch.tensor(0.8), torch.tensor(0.4)
    with pytest.raises(RecipeError, match=r"between 0 \(ODE\) and 1"):
        ddim(view, x, t, s, eta=2.0)
    with pytest.raises(RecipeError, match="draw=drawing"):
        ancestral(view, x, t, s)
    with pytest.raises(RecipeError, match=r"past=\[\]"):
        dpmpp_2m(view, x, t, s)
    with pytest.raises(RecipeError, match="falling times"):
        integrate(view, x, torch.tensor([0.0, 1.0]))
    with pytest.raises(RecipeError, match="runs from t = 0"):
        ddim(view, x, torch.tensor(999.0), s)
    with pytest.raises(RecipeError, match="outside the segments"):
        segment_edge(torch.tensor([0.0]), torch.tensor([0.0, 1.0]))
    with pytest.raises(RecipeError, match="second slope"):
        runge_kutta2(view, x, t, s, place=0.0)
    with pytest.raises(RecipeError, match="gamma"):
        segmented(view, x, torch.tensor([1.0, 0.0]), gamma=-1.0)
    with pytest.raises(RecipeError, match="overshoot need draw=drawing"):
        overshooting(view, x, torch.tensor([1.0, 0.5, 0.0]))
    with pytest.raises(RecipeError, match="several steps"):
        multistep_consistency(lambda x, t, c: x, Flow(), x, torch.tensor([1.0, 0.5]))

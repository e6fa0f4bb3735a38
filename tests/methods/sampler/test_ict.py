"""iCT: its curriculum, which intervals it looks at, its distance and weights, one dropout mask, and what it learns."""

import dataclasses
import itertools
import math

import pytest
import torch

from attar.data.samples import PointSamples
from attar.diffusion.consistency import Consistent
from attar.diffusion.mixture import Mixture
from attar.diffusion.specs import EdmProcess
from attar.methods.sampler.core.distillation import Phase
from attar.methods.sampler.core.times import Pair, Pairs
from attar.methods.sampler.ict import ImprovedConsistencyTraining as ICT
from attar.spec import build

TINY = {"teaching.net": {"kind": "residual-mlp", "width": 16, "blocks": 2}, "train.steps": 4, "train.batch": 6}


@pytest.fixture
def lesson(open_run, pictures):
    """Return a function that starts a method whose student has no zero weights."""

    def start(run, **changes):
        method = build(ICT, {**TINY, **changes})
        begun = method.begin(run, pictures, None)
        with torch.no_grad():
            for parameter in begun.student.module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
        begun.student.module.train()
        return method, begun

    return start


def test_the_papers_intervals_double_from_10_to_1280_in_eighths():
    pairs = ICT().pairs
    assert [pairs.count(k, 800) for k in (0, 99, 100, 199, 200, 699, 700, 799)] == [10, 10, 20, 20, 40, 640, 1280, 1280]


@pytest.mark.parametrize("intervals", [57, 100, 150])
def test_any_number_of_intervals_is_reached(intervals):
    pairs = Pairs(intervals=intervals, first=10)
    counts = [pairs.count(k, 5000) for k in range(5000)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (10, intervals)


def test_levels_reach_from_sigma_min_to_80_and_intervals_are_chosen_by_what_a_log_normal_puts_there():
    pairs, process = ICT().pairs, EdmProcess().build()
    levels = pairs.grid(process, 3)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = [(low + i / 3 * (high - low)) ** 7 for i in range(4)]
    torch.testing.assert_close(levels, torch.tensor(expected, dtype=torch.float64))
    mass = [math.erf((math.log(b) + 1.1) / (math.sqrt(2) * 2)) - math.erf((math.log(a) + 1.1) / (math.sqrt(2) * 2))
            for a, b in itertools.pairwise(expected)]  # fmt: skip
    chances = torch.tensor([m / sum(mass) for m in mass], dtype=torch.float64)
    torch.testing.assert_close(pairs.chances(process, levels), chances)
    # half of all is looked at below σ = e^−1.1 = 0.33, not above
    fine = pairs.grid(process, 1280)
    below = pairs.chances(process, fine)[fine[1:] < math.exp(-1.1)].sum()
    assert below == pytest.approx(0.5, abs=0.02)


def test_the_loss_is_written_out(lesson, open_run):
    with open_run(seed=5) as run:
        method, begun = lesson(run, **{"teaching.net.dropout": 0.0})
        moment = method.moment(begun, Phase("distil", 4), 3)
        pair = method.pair(begun, moment)
        (terms,) = method.terms(begun, moment)
        x0, noise = moment.batch.x0.double(), moment.batch.noise.double()
        module = begun.student.module.double()

        def f(sigma):
            s = sigma[:, None, None, None]
            x = x0 + s * noise
            answer = module(x / (s**2 + 0.25).sqrt(), 0.25 * sigma.log(), moment.condition)
            return 0.25 / ((s - 0.002) ** 2 + 0.25) * x + 0.5 * (s - 0.002) / (s**2 + 0.25).sqrt() * answer

        difference = (f(pair.t) - f(pair.s)).flatten(1)
        c = 0.00054 * math.sqrt(64)
        distance = ((difference**2).sum(1) + c * c).sqrt() - c
        loss = (distance / (pair.t - pair.s)).mean()
        assert terms["consistency"].item() == pytest.approx(loss.item(), rel=1e-3)


def test_the_side_nearer_the_data_gets_no_gradient(lesson, open_run):
    with open_run() as run:
        method, begun = lesson(run)
        moment = method.moment(begun, Phase("distil", 4), 0)
        pair = method.pair(begun, moment)
        x_s = method.below(begun, moment, pair, moment.batch.x0)
        assert begun.target.network is begun.view.network  # no average: what is aimed at is the student itself
        assert not method.goal(begun.target, x_s, pair, moment.condition).requires_grad


def test_both_sides_have_one_dropout_mask(lesson, open_run, monkeypatch):
    with open_run() as run:
        method, begun = lesson(run, **{"teaching.net.dropout": 0.5})
        moment = method.moment(begun, Phase("distil", 4), 0)
        t = torch.full((6,), 1.0, dtype=torch.float64)
        same = Pair(t, t, torch.zeros_like(t))
        x = method.state(begun, moment, same)
        first, second = (method.led(begun.view, x, same, t, moment.condition) for _ in range(2))
        assert (first - second).abs().max() > 0.01  # dropout is on
        monkeypatch.setattr(type(method), "pair", lambda *_: same)
        method = dataclasses.replace(method, weight="none")
        (terms,) = method.terms(begun, moment)
        assert terms["consistency"].item() == 0.0


def test_the_student_is_x_itself_at_the_last_level(lesson, open_run):
    with open_run() as run:
        _, begun = lesson(run)
        x = torch.randn(3, 1, 8, 8)
        low = torch.full((3,), 0.002, dtype=torch.float64)
        condition = torch.tensor([0, 1, 2])
        assert torch.equal(Consistent(begun.view, "cm").x0(x, low, condition), x)
        assert not torch.allclose(Consistent(begun.view, "cm").x0(x, 10 * low, condition), x, atol=1e-3)


def test_no_teacher_is_trained_and_the_second_step_is_taken_from_0_821(open_run, pictures):
    assert not ICT().asks
    assert ICT().drawing().times == (0.821,)
    with open_run() as run:
        made = build(ICT, TINY)(run, data=pictures)
    assert not run.parents
    seen = []
    made.module.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    made(2, steps=2)
    torch.testing.assert_close(torch.stack(seen)[:, 0], torch.tensor([80.0, 0.821]).log() / 4)


def test_the_papers_setting_runs_on_a_u_net(open_run, pictures):
    sizes = {"teaching.net.width": 8, "teaching.net.blocks": 1, "train.steps": 2, "train.batch": 3}
    method = build(ICT, sizes, preset="paper")
    assert (method.teaching.net.kind, method.teaching.net.dropout) == ("unet", 0.3)
    assert (method.train.optimizer.kind, method.train.clip, method.train.decay) == ("radam", None, 0.99993)
    with open_run() as run:
        assert method(run, data=pictures)(2, steps=2).isfinite().all()


def test_one_step_from_noise_gives_the_data(open_run):
    """On one Gaussian the student must end with its mean and spread, which it is never told."""
    data = PointSamples(Mixture.gaussian(torch.tensor([1.0, -0.5]), 0.5))
    fields = {"teaching.net": "mlp", "teaching.net.width": 32, "teaching.net.depth": 2, "teaching.net.frequency": 1.0,
              "pairs.intervals": 40, "train.steps": 700, "train.batch": 128, "train.optimizer.lr": 3e-3,
              "train.average": None}  # fmt: skip
    with open_run() as run:
        made = build(ICT, fields)(run, data=data)
    drawn = made(2000)
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, -0.5]), atol=0.12, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.tensor([0.5, 0.5]), atol=0.12, rtol=0)

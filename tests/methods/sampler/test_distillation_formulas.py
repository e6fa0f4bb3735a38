"""Losses of distillation are zero for exactly the student that each method wants, and for no other."""

from __future__ import annotations

import math

import pytest
import torch
from exact import DATA, Exact, carried, lesson, loss, student

from attar.diffusion import Flow, ddim, segment_edge
from attar.diffusion.specs import EdmProcess
from attar.errors import RecipeError
from attar.methods.sampler.consistency import Consistency
from attar.methods.sampler.core.coupling import Coupling
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.times import Pairs
from attar.methods.sampler.core.training import SamplerTraining, alike
from attar.methods.sampler.meanflow import MeanFlow, mean_velocity_target
from attar.methods.sampler.progressive import Progressive, two_step_target
from attar.methods.sampler.rectified_flow import RectifiedFlow
from attar.methods.sampler.scm import ContinuousConsistency
from attar.nets.denoiser_specs import ResidualMLP

TRAIN = SamplerTraining(batch=256)
FLOW = Flow()


def test_two_steps_do_not_become_one_on_edm(open_run, pictures, taught):
    with open_run() as run, pytest.raises(RecipeError, match="process=flow"):
        Progressive(train=TRAIN)(run, data=pictures, teacher=taught(process=EdmProcess()))


class TestConsistency:
    """The exact consistency function is a fixed point."""

    def method(self, **fields):
        told = {"solver": "heun", "substeps": 32, "pairs": Pairs(intervals=8), "target": None, "train": TRAIN}
        return Consistency(**{**told, **fields})

    def test_the_exact_function_is_a_fixed_point_of_distillation(self, open_run):
        with open_run() as run:
            assert loss(run, self.method(), student()) < 1e-7

    def test_a_coarse_solver_moves_the_target(self, open_run):
        with open_run() as run:
            assert loss(run, self.method(solver="ddim", substeps=1), student()) > 1e-4

    @pytest.mark.parametrize("average", [None, 0.5])
    def test_both_sides_have_the_same_dropout_masks(self, open_run, pictures, taught, average):
        """A student compared with itself at the same time errs by nothing, though half of it is dropped."""
        given = taught(ResidualMLP(width=16, blocks=1, dropout=0.5))
        method = self.method(target=average)
        with open_run() as run:
            begun = method.begin(run, pictures, given)
            begun.student.module.train()
            moment = method.moment(begun, method.phases()[0], 0)
            t = torch.full((256,), 0.5, dtype=torch.float64)
            x, told = moment.batch.x0, moment.condition
            sides = alike(lambda: begun.target.output(x, t, told), lambda: begun.view.output(x, t, told))
            torch.testing.assert_close(*sides)
            assert not torch.allclose(sides[0], begun.view.output(x, t, told))

    def test_fresh_noise_moves_the_target(self, open_run):
        with open_run() as run:
            assert loss(run, self.method(solver="ddim", eta=0.5), student()) > 1e-3

    def test_training_compares_the_same_noise(self, open_run):
        with open_run() as run:
            assert 1e-4 < loss(run, self.method(neighbour="noise"), student()) < 0.1  # E[x0 | x_t] on one side alone

    def test_another_function_is_none(self, open_run):
        with open_run() as run:
            away = student(lambda t: 0.5 * t)
            assert loss(run, self.method(), away) > 1e-4

    def test_within_segments_the_exact_jump_to_the_edge_is_the_fixed_point(self, open_run):
        edges = torch.linspace(0, 1, 5, dtype=torch.float64)
        jumping = student(lambda t: segment_edge(t.clamp(1e-4, 1), edges))
        with open_run() as run:
            assert loss(run, self.method(pairs=Pairs(intervals=8, segments=4)), jumping) < 1e-7
        with open_run() as run:
            assert loss(run, self.method(pairs=Pairs(intervals=8, segments=1)), jumping) > 1e-4
        with open_run() as run:
            assert loss(run, self.method(pairs=Pairs(intervals=8, segments=4)), student()) > 1e-4

    def test_where_the_lower_side_has_arrived_it_is_the_state_itself(self, open_run):
        with open_run() as run:
            one = self.method(pairs=Pairs(intervals=1), solver="ddim", substeps=1)
            made = loss(run, one, student())
        with open_run() as run:
            exact = loss(run, self.method(pairs=Pairs(intervals=1)), student())
        assert made > 1e-2
        assert exact < 1e-6

    def test_weights_multiply_the_distance(self, open_run):
        coarse = {"solver": "ddim", "substeps": 1, "pairs": Pairs(intervals=4)}
        with open_run() as run:
            plain = loss(run, self.method(**coarse), student())
        with open_run() as run:
            assert loss(run, self.method(weight="interval", **coarse), student()) == pytest.approx(4 * plain, rel=1e-4)

    def test_the_target_is_the_average_where_one_is_kept(self, open_run):
        method = Consistency(train=SamplerTraining(steps=3, batch=8), target=0.5, teaching={"net": {"kind": "mlp"}})
        with open_run() as run:
            made = method.begin(run, DATA, _exact())
            assert made.target.network is made.learner.ema["target"] is not made.view.network


class TestContinuous:
    """The exact consistency function has no tangent."""

    def test_the_exact_function_has_no_tangent_and_any_process_will_do(self, open_run):
        with open_run() as run:
            assert loss(run, ContinuousConsistency(train=TRAIN, warmup=0), student()) < 1e-6

    def test_central_differences_agree(self, open_run):
        with open_run() as run:
            method = ContinuousConsistency(train=TRAIN, warmup=0, derivative="central", width=1e-2)
            assert loss(run, method, student()) < 1e-2

    def test_another_function_has_one(self, open_run):
        with open_run() as run:
            assert loss(run, ContinuousConsistency(train=TRAIN, warmup=0), student(lambda t: 0.5 * t)) > 0.05

    def test_data_instead_of_a_teacher_leave_the_spread_of_x0(self, open_run):
        with open_run() as run:
            assert loss(run, ContinuousConsistency(train=TRAIN, warmup=0, slope="data"), student()) > 0.05

    def test_at_the_start_of_the_warm_up_only_the_stable_part_counts(self, open_run):
        with open_run() as run:
            assert loss(run, ContinuousConsistency(train=TRAIN, warmup=100), student()) > 1e-3

    def test_broken_samples_are_left_out(self, open_run):
        class Broken(Exact):
            def forward(self, x, label, condition=None):
                out = super().forward(x, label, condition)
                return torch.where(x[:, :1] > 1.0, out * float("nan"), out)

        sampler = student()
        sampler.module = Broken(FLOW, torch.zeros_like)
        with open_run() as run:
            method = ContinuousConsistency(train=TRAIN, warmup=0, derivative="central", width=1e-2, adaptive=False)
            assert 0 < loss(run, method, sampler) < 1e-2

    def test_angles_do_not_depend_on_the_scale_of_the_data(self, open_run):
        drawn = []
        for sigma_data in (0.5, 2.0):
            with open_run() as run:
                method = ContinuousConsistency(train=TRAIN, sigma_data=sigma_data)
                made = lesson(run, method, student())
                next(iter(method.terms(made, method.moment(made, method.phases()[0], 0))))
                drawn.append(made.state.hardness[0])
        assert torch.equal(*drawn)
        assert float(drawn[0].tan().log().mean()) == pytest.approx(-1.0 - math.log(0.5), abs=0.3)

    def test_clipping_holds_every_number(self):
        tangent = torch.tensor([[5.0, -0.5], [float("nan"), 0.0]])
        bounded, finite = ContinuousConsistency(tangent="clipped").bounded(tangent)
        assert bounded.tolist() == [[1.0, -0.5], [0.0, 0.0]]
        assert finite.tolist() == [True, False]


class TestMeanFlow:
    """The exact mean velocity solves the identity u = v − (t − r) du/dt."""

    def test_the_exact_mean_velocity_is_the_fixed_point(self, open_run):
        method = MeanFlow(train=TRAIN, slope="teacher", power=0.0, equal=0.3)
        with open_run() as run:
            assert loss(run, method, student()) < 1e-5

    def test_the_derivative_matters(self):
        v, change = torch.ones(2, 1), torch.full((2, 1), 3.0)
        t, r = torch.tensor([0.8, 0.5]), torch.tensor([0.3, 0.5])
        assert mean_velocity_target(v, change, t, r).flatten().tolist() == pytest.approx([1 - 0.5 * 3, 1.0])

    def test_data_leave_the_spread_of_the_velocity(self, open_run):
        with open_run() as run:
            assert loss(run, MeanFlow(train=TRAIN, power=0.0), student()) > 0.05

    def test_power_one_makes_every_error_count_alike(self, open_run):
        with open_run() as run:
            assert loss(run, MeanFlow(train=TRAIN, constant=1e-9), student()) == pytest.approx(1.0, abs=0.02)


class TestProgressive:
    """The target of progressive distillation inverts two DDIM steps."""

    def test_one_step_with_the_target_goes_where_two_steps_went(self):
        view = DATA.exact(FLOW)
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(16, 2, generator=rng, dtype=torch.float64)
        t, middle, s = (torch.full((16,), value, dtype=torch.float64) for value in (0.75, 0.5, 0.25))
        target = two_step_target(view, x, (t, middle, s), None)
        landed = ddim(view, ddim(view, x, t, middle), middle, s)
        jumped = FLOW.alpha(s)[:, None] * target + (FLOW.sigma(s) / FLOW.sigma(t))[:, None] * (
            x - FLOW.alpha(t)[:, None] * target
        )
        assert torch.allclose(jumped, landed, atol=1e-12)
        assert not torch.allclose(target, view.x0(x, t), atol=1e-2)
        swapped = two_step_target(view, x, (t, s, middle), None)
        assert not torch.allclose(swapped, target, atol=1e-2)

    def test_rounds_halve_the_steps_down_to_the_last(self):
        rounds = Progressive(teacher_steps=16, steps=2).phases()
        assert [phase.settings["steps"] for phase in rounds] == [8, 4, 2]
        assert [phase.settings["first"] for phase in rounds] == [True, False, False]

    def test_steps_that_halving_never_meets_are_refused(self):
        with pytest.raises(ValueError, match="not met"):
            Progressive(teacher_steps=12, steps=2)

    def test_times_stand_on_the_grid_of_twice_the_steps(self, open_run):
        method = Progressive(teacher_steps=8, steps=4, train=TRAIN)
        with open_run() as run:
            made = method.moment(method.begin(run, DATA, _exact()), method.phases()[0], 0)
            t, middle, s = method.times(FLOW, made)
        assert torch.allclose(t - middle, torch.full_like(t, 1 / 8))
        assert torch.allclose(middle - s, torch.full_like(t, 1 / 8))
        assert set((t * 4).round().tolist()) == {1.0, 2.0, 3.0, 4.0}

    def test_a_later_round_learns_from_the_student_before(self, open_run):
        method = Progressive(teacher_steps=8, steps=1, train=SamplerTraining(batch=8, average=0.9), teaching=_mlp())
        with open_run() as run:
            made = method.begin(run, DATA, _exact())
            made.state = method.build(made)
            with torch.no_grad():
                made.student.module.out.bias.add_(1.0)
                made.learner.ema["evaluated"].out.bias.fill_(7.0)
            first, second, _ = method.phases()
            method.enter(made, first)
            assert float(made.state.module.out.bias[0]) != 7.0
            method.enter(made, second)
            assert made.state.module.out.bias.tolist() == [7.0, 7.0]
            assert made.student.module.out.bias.tolist() == [7.0, 7.0]


class TestRectifiedFlow:
    """Straight lines between coupled ends are the fixed point; their coupling is what makes them straight."""

    def straight(self):
        class Straight(Exact):
            """ε − x0 where x0 = m + s ε: the Gaussian's own coupling."""

            def forward(self, x, label, condition=None):
                mean, t = torch.tensor([1.0, -0.5]), label.float()[:, None]
                noise = (x - (1 - t) * mean) / ((1 - t) * 0.4 + t)
                return noise - (mean + 0.4 * noise) + self.nothing

        return Straight(FLOW, torch.zeros_like)

    def loss(self, run, *, shuffled):
        method = RectifiedFlow(coupling={"count": 256, "steps": 64}, train=TRAIN, teaching=_mlp())
        made = method.begin(run, DATA, _exact())
        made.student.module = self.straight()
        phase = method.phases()[0]
        method.enter(made, phase)
        if shuffled:
            made.state.pairs.ends = made.state.pairs.ends.flip(0)
        terms = next(iter(method.terms(made, method.moment(made, phase, 0))))
        return float(terms["velocity"].detach())

    def test_the_stored_coupling_is_kept(self, open_run):
        with open_run() as run:
            assert self.loss(run, shuffled=False) < 1e-5
        with open_run() as run:
            assert self.loss(run, shuffled=True) > 0.05

    def test_other_processes_are_refused(self, open_run):
        method = RectifiedFlow(teaching={"process": "cosine", "net": {"kind": "mlp"}})
        with open_run() as run, pytest.raises(RecipeError, match="process=flow"):
            method.build(method.begin(run, DATA, _exact()))

    def test_reflow_is_rounds_and_distillation_is_at_the_noise(self):
        names = [phase.name for phase in RectifiedFlow(rounds=2, distil_steps=5).phases()]
        assert names == ["reflow 0", "reflow 1", "distil"]


def test_trajectories_are_where_the_flow_carries_them(open_run):
    with open_run() as run:
        stored = Coupling(count=32, steps=32, kept=8)(run, data=DATA, teacher=_exact())
    assert stored.times.tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25])
    one = torch.ones(32, dtype=torch.float64)
    for number, time in enumerate(stored.times):
        want = carried(FLOW, stored.noise, one, time * one)
        assert torch.allclose(stored.path[:, number].double(), want, atol=3e-3)
    assert torch.allclose(stored.ends.double(), carried(FLOW, stored.noise, one, 0 * one), atol=3e-3)


def _exact():
    return GivenTeacher("exact")


def _mlp():
    return {"net": {"kind": "mlp", "width": 8, "depth": 1}}

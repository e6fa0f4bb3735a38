"""Times, pairs of times, dropped conditions, shared dropout, guidance, teachers and denoising losses."""

from __future__ import annotations

import math

import pytest
import torch
from exact import DATA
from torch import nn

from attar.artifacts.drawing import Multistep, Ode, grid_of
from attar.artifacts.sampler import Reading, Sampler
from attar.data import Samples
from attar.diffusion import VE, Denoiser, Flow, TrigFlow, VPDiscrete, coefficients, spread
from attar.diffusion.specs import CosineProcess, DiscreteProcess, EdmProcess, FlowProcess, TrigProcess
from attar.errors import AttarError, DataError, RecipeError
from attar.methods.sampler.consistency import Consistency
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance, ready
from attar.methods.sampler.core.times import Pairs, Times
from attar.methods.sampler.core.training import Batch, SamplerTraining, alike, batch_of, dropped
from attar.methods.sampler.diffusion import Diffusion, denoising_loss
from attar.nets.denoiser_specs import Extras, PointMLP

PROCESSES = [FlowProcess(), CosineProcess(), DiscreteProcess(), EdmProcess(), TrigProcess()]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class TestTimes:
    def test_a_log_normal_is_of_sigma_over_alpha_on_every_process(self):
        for process in (VE(), TrigFlow(sigma_data=0.5), Flow()):
            t = Times(kind="log-normal", mean=-1.2, std=1.2, lowest=0.0).draw(20_000, process, rng())
            level = -process.log_snr(t)
            assert float(level.mean()) == pytest.approx(-1.2, abs=0.03)
            assert float(level.std()) == pytest.approx(1.2, abs=0.03)

    def test_a_logit_normal_is_of_the_share(self):
        t = Times(kind="logit-normal", mean=0.5, std=0.7, lowest=0.0).draw(20_000, Flow(), rng())
        assert float(torch.logit(t).mean()) == pytest.approx(0.5, abs=0.02)

    def test_a_shift_moves_times_to_the_noise(self):
        plain, moved = (Times(shift=s, lowest=0.0).draw(1000, Flow(), rng()) for s in (1.0, 3.0))
        assert torch.allclose(moved, 3 * plain / (1 + 2 * plain))

    def test_a_share_is_at_the_highest_time(self):
        t = Times(at_highest=0.25).draw(10_000, VE(t_max=10.0), rng())
        assert float((t == 10.0).double().mean()) == pytest.approx(0.25, abs=0.02)

    def test_discrete_times_are_levels(self):
        t = Times().draw(100, VPDiscrete.linear(steps=10), rng())
        assert set((t * 10).tolist()) <= {float(k) for k in range(1, 11)}

    def test_on_edm_shares_are_places_on_its_grid(self):
        process = VE()
        assert process.time_of_share(torch.tensor([0.0, 1.0]).double()).tolist() == pytest.approx([0.002, 80.0])
        torch.testing.assert_close(process.time_of_share(torch.tensor(0.5).double()), process.grid(3)[1])
        t = Times(lowest=0.02, highest=0.98).draw(20_000, process, rng())
        assert float((t > 2).double().mean()) == pytest.approx(0.53, abs=0.02)  # 0.975 of times even in σ
        share = process.share(t)
        assert (float(share.min()), float(share.max())) == pytest.approx((0.02, 0.98), abs=1e-3)

    def test_few_steps_on_edm_are_drawn_at_times_of_the_grid_of_training(self):
        assert VE().grid(2)[1] == pytest.approx(0.002)  # its own grid of two steps has nothing between noise and data
        learned = grid_of(VE(), 2, learned=40)
        torch.testing.assert_close(learned, VE().grid(40)[[0, 20, 40]])
        assert 0.5 < float(learned[1]) < 5

    def test_bounds_must_be_a_range(self):
        with pytest.raises(ValueError, match="not below"):
            Times(lowest=0.5, highest=0.5)


class TestPairs:
    def test_the_grid_of_edm_ends_at_its_first_level_or_at_data(self):
        process = VE()
        assert torch.equal(Pairs(intervals=4).grid(process, 4), process.grid(4).flip(0))
        ended = Pairs(intervals=4, ends_at="first-level").grid(process, 4)
        assert len(ended) == 5
        assert float(ended[0]) == pytest.approx(0.002)
        assert float(ended[-1]) == 80.0

    def test_lcms_grid_is_every_twentieth_step_and_ends_at_the_first(self):
        process = VPDiscrete.scaled_linear()
        steps = process.label(Pairs(intervals=50, ends_at="first-level").grid(process, 50))
        assert steps.round().tolist() == [0.0, *(20.0 * j - 1 for j in range(1, 51))]

    def test_intervals_double_as_ict_says(self):
        pairs = Pairs(first=10, intervals=1280)
        counts = [pairs.count(step, 800) for step in (0, 99, 100, 300, 699, 700, 799)]
        assert counts == [10, 10, 20, 80, 640, 1280, 1280]

    def test_chances_are_what_a_log_normal_puts_in_each_interval(self):
        times = torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=torch.float64)
        chances = Pairs(chosen="log-normal", mean=-1.1, std=2.0).chances(VE(), times)
        normal = torch.distributions.Normal(-1.1, 2.0)
        mass = normal.cdf(times.log()).diff()
        assert torch.allclose(chances, mass / mass.sum(), atol=1e-6)
        assert float(chances[1]) > float(chances[2]) > 0.1

    def test_neighbours_are_neighbours_and_the_edge_is_below(self):
        pair = Pairs(intervals=8, segments=4).draw(500, Flow(), rng())
        assert torch.allclose(pair.t - pair.s, torch.full_like(pair.t, 1 / 8))
        assert torch.allclose(pair.end, ((pair.t * 8 - 1e-9) // 2) / 4)
        assert pair.jumps
        assert not Pairs(intervals=8).draw(5, Flow(), rng()).jumps

    def test_a_random_end_reaches_from_the_edge_to_the_lower_side(self):
        pair = Pairs(intervals=8, segments=2, random_end=True).draw(2000, Flow(), rng())
        edge = ((pair.t * 8 - 1e-9) // 4) / 2
        assert bool((pair.end >= edge).all() & (pair.end <= pair.s).all())
        last = pair.t == 1.0
        assert set((pair.end[last] * 8).round().tolist()) == {4.0, 5.0, 6.0, 7.0}

    def test_more_segments_than_intervals_are_refused(self):
        with pytest.raises(ValueError, match="segments"):
            Pairs(intervals=2, segments=4)


def test_conditions_are_dropped_one_by_one():
    labels = torch.zeros(10_000, dtype=torch.long)
    gone = dropped(labels, torch.tensor(3), 0.2, rng())
    assert float((gone == 3).double().mean()) == pytest.approx(0.2, abs=0.02)
    vectors = dropped(torch.ones(1000, 4), torch.zeros(4), 0.5, rng())
    assert set(vectors.sum(1).tolist()) == {0.0, 4.0}
    assert dropped(None, None, 0.5, rng()) is None


def test_two_passes_share_their_dropout_masks():
    drop = nn.Dropout(0.5)
    one, other = alike(lambda: drop(torch.ones(100)), lambda: drop(torch.ones(100)))
    assert torch.equal(one, other)
    assert not torch.equal(drop(torch.ones(100)), drop(torch.ones(100)))


def test_a_batch_is_a_function_of_its_counters(open_run):
    with open_run() as run:
        one, again, other = (batch_of(run, DATA, 8, counter) for counter in (1, 1, 2))
    assert torch.equal(one.x0, again.x0)
    assert torch.equal(one.noise, again.noise)
    assert not torch.equal(one.x0, other.x0)
    assert not torch.equal(one.noise, other.noise)
    assert float(one.mean(torch.ones(8))) == 1.0


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.kind)
def test_a_network_that_knows_its_target_has_no_loss(process):
    view = process.build()
    x0, noise = torch.randn(6, 2, generator=rng(1)), torch.randn(6, 2, generator=rng(2))
    t = Times(lowest=0.05, highest=0.9).draw(6, view, rng(3))
    a, b = (spread(value, x0) for value in coefficients(process.predicts, view, t))
    known = Denoiser(lambda x, label, condition: (a * x0 + b * noise).float(), view, process.predicts)
    batch = Batch(x0, noise, None, slice(0, 6), 6)
    assert float(denoising_loss(known, batch, t).max()) < 1e-10
    assert float(denoising_loss(known, batch, t, "snr+1").max()) < 1e-6
    naught = Denoiser(lambda x, label, condition: torch.zeros_like(x), view, process.predicts)
    assert float(denoising_loss(naught, batch, t).min()) > 1e-3


def test_the_weight_multiplies_the_error_of_x0():
    view = Denoiser(lambda x, label, condition: torch.zeros_like(x), Flow(), "x0")
    batch = Batch(torch.ones(2, 3), torch.zeros(2, 3), None, slice(0, 2), 2)
    t = torch.tensor([0.2, 0.8], dtype=torch.float64)
    assert denoising_loss(view, batch, t, "snr").tolist() == pytest.approx([16.0, 1 / 16])
    assert denoising_loss(view, batch, t, "truncated-snr").tolist() == pytest.approx([16.0, 1.0])


def test_the_average_that_comes_out_has_a_horizon_of_a_share():
    assert SamplerTraining(steps=1000, average_share=0.05).decay == pytest.approx(1 - 1 / 50)
    assert SamplerTraining(steps=10, average_share=0.05).decay == 0.0
    assert SamplerTraining(average=0.5).decay == 0.5


class TestGuidance:
    def test_it_is_drawn_for_each_sample(self):
        scale = TeacherGuidance(scale=2.0, highest=5.0).draw(1000, rng())
        assert 2.0 <= float(scale.min()) < 2.1
        assert 4.9 < float(scale.max()) <= 5.0

    def test_what_cannot_be_guided_is_refused(self, tiny_images):
        class Bare(type(DATA)):
            """Points of which nothing is told."""

        bare = Bare(DATA.mixture)
        bare.conditions = ()
        with pytest.raises(RecipeError, match="nothing to guide towards"):
            TeacherGuidance(scale=2.0).check(bare)
        TeacherGuidance().check(bare)

    def test_the_student_is_told_w_and_the_teacher_is_asked_g(self, open_run):
        method = Consistency(
            guidance={"scale": 3.0, "embedded": True}, train=SamplerTraining(batch=4), teaching={"net": {"kind": "mlp"}}
        )
        with open_run() as run:
            lesson = method.begin(run, DATA, GivenTeacher("exact"))
            moment = method.moment(lesson, method.phases()[0], 0)
            assert moment.condition["guidance"].tolist() == [2.0] * 4
            assert method.teacher_of(lesson, moment).scale.tolist() == [3.0] * 4
            assert lesson.student.reading.guided == "embedded"
            assert lesson.student.reading.guidance == 3.0


class TestTeachers:
    def test_what_cannot_teach_is_refused(self, tiny_images, open_run):
        with pytest.raises(AttarError, match="cannot teach a sampler"):
            GivenTeacher.of(3)
        data = Samples.of(tiny_images())
        with open_run() as run, pytest.raises(DataError, match="no closed form"):
            ready(run, data, GivenTeacher.of("exact"), Diffusion())

    def test_a_teacher_of_other_data_is_refused(self, tiny_images, open_run):
        reading = Reading(process=FlowProcess(), prediction="velocity", drawing=Ode())
        other = Sampler.fresh(PointMLP(width=8, depth=1), DATA, reading, rng())
        with open_run() as run, pytest.raises(DataError, match="trained on this data"):
            ready(run, Samples.of(tiny_images()), GivenTeacher.of(other), Diffusion())

    @pytest.mark.parametrize("fields", [{"drawing": Multistep()}, {"extras": Extras(guidance=True)}])
    def test_a_student_that_no_solver_can_follow_is_refused(self, fields, open_run):
        reading = Reading(process=FlowProcess(), prediction="velocity", drawing=fields.get("drawing", Ode()))
        student = Sampler.fresh(PointMLP(width=8, depth=1), DATA, reading, rng(), extras=fields.get("extras"))
        with open_run() as run, pytest.raises(RecipeError, match="the run of diffusion that taught it"):
            ready(run, DATA, GivenTeacher.of(student), Diffusion())

    def test_a_teacher_that_is_not_given_is_trained_once(self, open_run, tiny_images):
        data = Samples.of(tiny_images())
        teaching = Diffusion(
            net={"kind": "residual-mlp", "width": 8, "blocks": 1}, train=SamplerTraining(steps=2, batch=4)
        )
        with open_run() as run:
            one = ready(run, data, None, teaching)
        with open_run(seed=1) as run:
            other = ready(run, data, None, teaching)
        assert one.sampler.fingerprint == other.sampler.fingerprint
        assert not any(p.requires_grad for p in one.sampler.module.parameters())

    def test_a_student_begins_as_its_teacher_and_its_inputs_beside_begin_at_zero(self, open_run, tiny_images):
        data = Samples.of(tiny_images())
        teaching = Diffusion(
            net={"kind": "residual-mlp", "width": 8, "blocks": 1}, train=SamplerTraining(steps=2, batch=4)
        )
        method = Consistency(teaching=teaching, guidance={"highest": 3.0, "embedded": True})
        with open_run() as run:
            lesson = method.begin(run, data, None)
        x, t = torch.randn(3, 1, 8, 8, generator=rng()), torch.tensor(0.5)
        told = {"condition": torch.tensor([0, 1, 2]), "guidance": torch.tensor([0.0, 1.0, 5.0])}
        with torch.no_grad():
            assert torch.equal(lesson.view.output(x, t, told), lesson.teacher.view.output(x, t, told["condition"]))
        assert all(p.requires_grad for p in lesson.student.module.parameters())


def test_a_prediction_that_its_process_does_not_have_is_refused():
    with pytest.raises(RecipeError, match="defined on"):
        Diffusion(prediction="v")
    assert math.isclose(Diffusion(process="vp").process.time_scale, 1e-3)

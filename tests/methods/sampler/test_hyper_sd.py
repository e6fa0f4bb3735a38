"""Hyper-SD: stages of fewer segments with a drawn end, a discriminator at that end, feedback, and one step."""

import pytest
import torch

from attar.artifacts.drawing import Segmented, grid_of
from attar.data.samples import Samples
from attar.diffusion import Flow, Mixture, VPDiscrete, ddim
from attar.diffusion.consistency import Consistent
from attar.errors import RecipeError
from attar.losses.denoising import squared
from attar.methods.sampler.core.reward import GivenReward
from attar.methods.sampler.core.rollout import late_sample
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.hyper_sd import SegmentedConsistency as HyperSD
from attar.spec import build

POINTS = Samples.of(Mixture.gaussian(torch.tensor([1.0, -0.5]), 0.3))
TINY = {
    "train.steps": 2, "train.batch": 6, "pairs": {"intervals": 16}, "guidance.scale": 1.0, "feedback_steps": 2,
    "one_step_steps": 2, "coupling": {"count": 16, "steps": 2}, "adversary.hidden": 4,
    "teaching.process": {"kind": "flow"},
}  # fmt: skip
ALONE = {**TINY, "fooling": (0.0,) * 4, "feedback_steps": 0, "one_step_steps": 0}
ON_POINTS = {**ALONE, "net": {"kind": "mlp", "width": 16, "depth": 1}}


def darkness(x, condition):
    return -x.flatten(1).mean(1)


@pytest.fixture
def begun(pictures, taught):
    """Return a function that starts a method and enters a phase of it."""

    def start(run, phase=0, **changes):
        method = build(HyperSD, {**TINY, **changes})
        lesson = method.begin(run, pictures, taught(), reward=GivenReward.of(darkness))
        lesson.state = method.build(lesson)
        entered = method.phases()[phase]
        method.enter(lesson, entered)
        return method, lesson, method.moment(lesson, entered, 0)

    return start


def test_stages_go_from_8_segments_to_one_then_feedback_then_one_step():
    phases = HyperSD().phases()
    assert [phase.name for phase in phases] == [
        "1: 8 segments", "2: 4 segments", "3: 2 segments", "4: 1 segments", "feedback", "one step",
    ]  # fmt: skip
    assert [phase.settings["pairs"]["segments"] for phase in phases[:4]] == [8, 4, 2, 1]
    close, fool = ([phase.settings[name] for phase in phases[:4]] for name in ("close", "fool"))
    assert all(a > b for a, b in zip(close[:2], fool[:2], strict=True))
    assert all(a < b for a, b in zip(close[2:], fool[2:], strict=True))
    with pytest.raises(RecipeError, match="as many weights"):
        build(HyperSD, {"segments": (4, 1)})


def test_both_sides_jump_to_one_drawn_end_inside_the_segment(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, **{"fooling": (0.0,) * 4, "closeness": (0.5, 1, 1, 1), "train.batch": 64})
        pair = method.pair(lesson, moment)
        edge = ((pair.t * 16 - 1e-9) / 2).floor() * 2 / 16  # of 8 segments of 2 intervals each
        assert pair.jumps
        assert (pair.end >= edge - 1e-9).all()
        assert (pair.end <= pair.s + 1e-9).all()
        inside = pair.s > edge + 1e-9
        assert {0, 1} == {
            round(float(v)) for v in ((pair.end - edge) * 16)[inside]
        }  # edges and s itself are both drawn
        x_t = method.state(lesson, moment, pair)
        x_s = ddim(lesson.teacher.view, x_t, pair.t, pair.s, moment.batch.condition)
        guess = ddim(lesson.view, x_t, pair.t, pair.end, moment.condition)
        there = pair.s <= pair.end
        led = ddim(lesson.target, x_s, torch.where(there, 0.5, pair.s), pair.end, moment.condition)
        goal = torch.where(there.reshape(-1, 1, 1, 1), x_s, led)  # where e = s the target is the teacher's step itself
        (terms,) = method.terms(lesson, moment)
        expected = 0.5 * squared(guess, goal).mean().item()
        assert terms["consistency"].item() == pytest.approx(expected, rel=1e-3)
        assert terms.keys() == {"consistency"}


def test_the_discriminator_sees_the_end_of_the_jump_at_its_own_noise(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run)
        (terms,) = method.terms(lesson, moment)
        assert terms.keys() == {"consistency", "adversarial"}
        _, t = lesson.state.discriminator._fake
        assert (t >= method.pair(lesson, moment).end - 1e-9).all()
        pulled = torch.autograd.grad(terms["adversarial"], lesson.learner.parameters, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in pulled)
        before = [p.clone() for p in lesson.state.discriminator.learner.parameters]
        method.after(lesson, moment)
        after = lesson.state.discriminator.learner.parameters
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_stage_starts_from_the_average_of_the_one_before_with_a_fresh_optimizer(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, **{"train.average": 0.9, "train.optimizer.lr": 0.01, "fooling": (0.0,) * 4})
        run.backward(next(iter(method.terms(lesson, moment))), lesson.learner)
        lesson.learner.step()
        averaged = [p.clone() for p in lesson.learner.ema["evaluated"].parameters()]
        live = [p.clone() for p in lesson.learner.parameters]
        assert not all(torch.equal(a, b) for a, b in zip(averaged, live, strict=True))
        method.enter(lesson, method.phases()[1])
        assert all(torch.equal(a, b) for a, b in zip(averaged, lesson.learner.parameters, strict=True))
        assert lesson.learner.steps == 0
        assert not lesson.learner.optimizer.state


def test_feedback_is_a_hinge_on_late_predictions_that_stops_where_it_pleases(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, phase=4, threshold=10.0)
        (terms,) = method.terms(lesson, moment)
        made = late_sample(lesson.view, moment.batch.noise, moment.condition, run.rng("late", moment.step))
        assert terms["feedback"].item() == pytest.approx(10.0 + made.mean().item(), rel=1e-4)
    with open_run() as run:
        method, lesson, moment = begun(run, phase=4, threshold=-10.0)
        (terms,) = method.terms(lesson, moment)
        assert terms["feedback"].item() == 0.0


def test_gradients_pass_the_last_prediction_of_a_roll_out_alone():
    asked = []

    class Counting(Consistent):
        def x0_eps(self, x, t, condition=None):
            asked.append((float(t.flatten()[0]), torch.is_grad_enabled()))
            return super().x0_eps(x, t, condition)

        def x0(self, x, t, condition=None):
            asked.append((float(t.flatten()[0]), torch.is_grad_enabled()))
            return self.view.x0(x, t, condition)

    view = Counting(POINTS.exact(Flow()))
    seen = set()
    for seed in range(12):
        asked.clear()
        late_sample(view, torch.randn(2, 2), None, torch.Generator().manual_seed(seed), steps=4)
        assert [grad for _, grad in asked] == [False] * (len(asked) - 1) + [True]
        assert [time for time, _ in asked] == [1.0, 0.75, 0.5, 0.25][: len(asked)]
        seen.add(len(asked))
    assert seen == {3, 4}  # the later half of four steps


def test_one_step_matches_the_anchors_law_and_the_teachers_ends(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, phase=5, paired=2.0, pleasing=0.5, threshold=10.0)
        own, pairs = lesson.state, lesson.state.pairs
        same = [bool((pairs.noise == noise).flatten(1).all(1).any()) for noise in moment.batch.noise]
        assert all(same)  # noise, ends and conditions come from the stored pairs
        (terms,) = method.terms(lesson, moment)
        made = lesson.view.x0(moment.batch.noise, torch.ones(6, dtype=torch.float64), moment.condition)
        assert torch.allclose(own.made, made, atol=1e-5)
        assert terms["paired"].item() == pytest.approx(2.0 * squared(made, moment.batch.x0).mean().item(), rel=1e-4)
        assert terms["feedback"].item() == pytest.approx(0.5 * (10.0 + made.mean().item()), rel=1e-4)
        # the anchor is the student as it entered, the fake score the teacher, and here the two are one network
        assert terms["score"].item() == pytest.approx(0.0, abs=1e-9)
        with torch.no_grad():
            for parameter in own.anchor.module.parameters():
                parameter.mul_(1.5)
        (moved,) = method.terms(lesson, moment)
        assert moved["score"].item() > 1e-4
        before = own.fake.learner.steps
        method.after(lesson, moment)
        assert own.fake.learner.steps == before + 1
        assert own.made is None
        other = build(HyperSD, {**TINY, "real": "teacher"})
        (by_teacher,) = other.terms(lesson, moment)
        assert by_teacher["score"].item() < moved["score"].item()


def test_one_step_may_be_told_an_earlier_time_with_full_noise(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, phase=5, highest=0.8)
        list(method.terms(lesson, moment))
        t = torch.full((6,), 0.8, dtype=torch.float64)
        made = lesson.view.x0(moment.batch.noise, t, moment.condition)
        assert torch.allclose(lesson.state.made, made, atol=1e-5)
        assert not torch.allclose(made, lesson.view.x0(0.8 * moment.batch.noise, t, moment.condition), atol=1e-2)
        drawn = lesson.student(6, moment.condition, noise=moment.batch.noise)  # what is trained is what is drawn
        assert torch.allclose(lesson.state.made, drawn, atol=1e-5)
    process = VPDiscrete.scaled_linear()
    assert float(process.label(grid_of(process, 1, 0.801)[0])) == pytest.approx(800)


def test_a_time_of_one_step_that_cannot_be_is_refused_before_training(open_run, begun):
    with open_run() as run, pytest.raises(RecipeError, match="begins at a time"):
        begun(run, highest=1.5)
    with pytest.raises(RecipeError, match="set one_step_steps"):
        build(HyperSD, {"highest": 0.8, "one_step_steps": 0})


def test_one_step_asks_a_teacher_of_unconditional_points(open_run):
    data = Samples.of("checkerboard")
    teaching = {"net": {"kind": "mlp", "width": 8, "depth": 1}, "train": {"steps": 2, "batch": 6}}
    sizes = {
        **TINY,
        "fooling": (0.0,) * 4,
        "feedback_steps": 0,
        "real": "teacher",
        "teaching": {**teaching, "process": "flow"},
    }
    with open_run() as run:
        sampler = build(HyperSD, {k: v for k, v in sizes.items() if k != "teaching.process"})(run, data=data)
    assert sampler(3).isfinite().all()


def test_without_pairs_feedback_or_one_step_nothing_else_is_made(open_run, begun):
    with open_run() as run:
        _, lesson, _ = begun(run, **{k: ALONE[k] for k in ("fooling", "feedback_steps", "one_step_steps")})
        own = lesson.state
        assert own.discriminator is own.reward is own.fake is own.pairs is None
        assert not run.parents


def test_segments_bring_points_to_the_gaussian(open_run):
    changes = {**ON_POINTS, "train.steps": 120, "train.batch": 64, "train.optimizer.lr": 5e-3, "net.width": 32}
    method = build(HyperSD, {**changes, "gamma": 0.0})
    with open_run() as run:
        sampler = method(run, data=POINTS, teacher=GivenTeacher("exact"))
    for steps in (1, 4):
        x = sampler(500, steps=steps)
        assert x.mean(0).tolist() == pytest.approx([1.0, -0.5], abs=0.15)
        assert 0.1 < x.std(0).mean().item() < 0.5


def test_the_papers_setting_runs(open_run, pictures, taught):
    sizes = {
        name: TINY[name] for name in ("train.steps", "train.batch", "feedback_steps", "one_step_steps", "coupling")
    }
    method = build(HyperSD, sizes, preset="paper")
    assert (method.segments, method.real, method.guidance.scale, method.pairs.intervals) == (
        (8, 4, 2, 1),
        "consistency",
        7.5,
        50,
    )
    with open_run() as run:
        sampler = method(
            run, data=pictures, teacher=taught(process=method.teaching.process), reward=GivenReward.of(darkness)
        )
    assert sampler.reading.drawing == Segmented(steps=1, gamma=0.3, learned=50)
    assert torch.isfinite(sampler(3, steps=4)).all()

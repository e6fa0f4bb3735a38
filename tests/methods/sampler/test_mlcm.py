"""MLCM: states of the teacher's trajectory, segments with neighbours that are clipped, and the stage across them."""

import pytest
import torch

from attar.artifacts.drawing import Segmented
from attar.data.samples import Samples
from attar.diffusion import Flow, Mixture, ddim
from attar.diffusion.specs import DiscreteProcess
from attar.losses.denoising import squared
from attar.methods.sampler.core.reward import GivenReward
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.times import Pair, Pairs
from attar.methods.sampler.mlcm import MultistepConsistency as MLCM
from attar.spec import build

POINTS = Samples.of(Mixture.gaussian(torch.tensor([1.0, -0.5]), 0.3))
ON_POINTS = {
    "net": {"kind": "mlp", "width": 16, "depth": 1},
    "guidance.scale": 1.0,
    "teaching.process": {"kind": "flow"},
}
TINY = {"train.steps": 4, "train.batch": 6, "pairs": {"intervals": 16, "skip": 2, "segments": 4}, "rollout": 4}
ACROSS = {"across": 1.0, "across_steps": 2, "across_substeps": 2}


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def begun(pictures, taught):
    """Return a function that starts a method on points with an exact teacher, or on pictures."""

    def start(run, data=POINTS, teacher=None, reward=None, phase=0, **changes):
        method = build(MLCM, {**TINY, **(ON_POINTS if data is POINTS else {}), **changes})
        lesson = method.begin(run, data, teacher or GivenTeacher("exact"), reward=reward)
        lesson.state = method.build(lesson)
        return method, lesson, method.moment(lesson, method.phases()[phase], 0)

    return start


def test_neighbours_lie_skip_intervals_apart_and_are_clipped_at_the_milestone():
    pairs = Pairs(intervals=16, skip=3, segments=4)
    drawn = pairs.draw(500, Flow(), torch.Generator().manual_seed(0))
    steps = ((drawn.t - drawn.s) * 16).round()
    above = ((drawn.t - drawn.end) * 16).round()
    assert torch.equal(steps, above.clamp_max(3))
    assert set(steps.tolist()) == {1.0, 2.0, 3.0}
    assert set((drawn.end * 4).tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_the_papers_grid_is_20_of_1000_steps_in_8_segments():
    method = MLCM()
    drawn = method.pairs.draw(400, method.teaching.process.build(), torch.Generator().manual_seed(0))
    steps = ((drawn.t - drawn.s) * 1000).round()
    assert steps.max() == 20
    assert (steps[(drawn.t - drawn.end) * 1000 > 20.5] == 20).all()
    assert {round(end * 8, 6) for end in drawn.end.tolist()} == set(range(8))
    assert [(phase.name, phase.steps) for phase in method.phases()] == [("segments", 12_000), ("across", 2_000)]
    assert method.train.schedule.factor(12_000, 14_000) == pytest.approx(0.1)
    assert method.train.schedule.factor(11_999, 14_000) == 1.0


def test_states_are_the_teachers_own_trajectory_cut_at_each_samples_time(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, rollout=4, **{"train.batch": 3})
        noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
        until = times(1.0, 0.4, 0.0)
        states = method.rolled(lesson, moment, noise, until)
        view, x = lesson.teacher.view, noise
        assert torch.equal(states[0], noise[0])
        for t, s in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.4)):
            x = ddim(view, x, times(t), times(s))
        assert torch.allclose(states[1], x[1], atol=1e-6)
        x = noise
        for t, s in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
            x = ddim(view, x, times(t), times(s))
        assert torch.allclose(states[2], x[2], atol=1e-6)


def test_a_fine_roll_out_ends_where_the_exact_flow_does_and_noised_samples_do_not(open_run, begun):
    moved, until = {}, torch.full((400,), 0.5, dtype=torch.float64)
    for states in ("trajectory", "noised"):
        with open_run() as run:
            method, lesson, moment = begun(run, rollout=64, states=states, **{"train.batch": 400})
            x_t = method.state(lesson, moment, Pair(until, until, until))
            exact = POINTS.mixture.flow_map(moment.batch.noise.double(), times(1.0)[0], times(0.5)[0], Flow())
            moved[states] = (x_t - exact).abs().mean().item()
            spread = (0.5**2 * 0.3**2 + 0.5**2) ** 0.5  # of x_t in both cases
            assert x_t.std(0).mean().item() == pytest.approx(spread, rel=0.1)
    assert moved["trajectory"] < 0.02
    assert moved["noised"] > 0.1


def test_guidance_and_conditions_follow_their_rows_through_the_roll_out(open_run, begun, pictures, taught):
    teacher = taught()
    with open_run() as run:
        method, lesson, moment = begun(
            run, pictures, teacher, **{"guidance.scale": 1.0, "guidance.highest": 4.0}, rollout=3
        )
        noise, until = moment.batch.noise, times(0.0, 0.9, 0.5, 1.0, 0.2, 0.4)
        whole = method.rolled(lesson, moment, noise, until)
        for row in range(6):
            one = dataclass_row(moment, row)
            alone = method.rolled(lesson, one, noise[row : row + 1], until[row : row + 1])
            assert torch.allclose(alone[0], whole[row], atol=1e-5)


def dataclass_row(moment, row):
    import dataclasses

    batch = dataclasses.replace(moment.batch, condition=moment.batch.condition[row : row + 1])
    return dataclasses.replace(moment, batch=batch, scale=moment.scale[row : row + 1])


def test_the_first_stage_leads_both_sides_to_the_edge(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, across=0.0)
        (terms,) = method.terms(lesson, moment)
        pair = method.pair(lesson, moment)
        assert pair.jumps
        x_t = method.rolled(lesson, moment, moment.batch.noise, pair.t)
        x_s = ddim(lesson.teacher.view, x_t, pair.t, pair.s, moment.batch.condition)
        at_edge = pair.s == pair.end
        safe = torch.where(at_edge, torch.full_like(pair.s, 0.5), pair.s)
        led = ddim(lesson.view, x_s, safe, pair.end, moment.condition)
        goal = torch.where(at_edge[:, None], x_s, led)
        guess = ddim(lesson.view, x_t, pair.t, pair.end, moment.condition)
        assert terms["consistency"].item() == pytest.approx(squared(guess, goal).mean().item(), rel=1e-4)


def test_the_second_stage_stands_on_milestones_with_the_students_own_samples_and_compares_clean_ones(open_run, begun):
    with open_run() as run:
        method, lesson, moment = begun(run, **ACROSS)
        pair = method.pair(lesson, moment)
        assert not pair.jumps
        assert torch.allclose(pair.t - pair.s, times(0.25).expand(6))
        x_t = method.state(lesson, moment, pair)
        made = lesson.state.made
        assert torch.allclose(x_t, Flow().diffuse(made, moment.batch.noise, pair.t).to(x_t.dtype), atol=1e-6)
        (terms,) = method.terms(lesson, moment)
        view, middle = lesson.teacher.view, (pair.t + pair.s) / 2
        x_s = ddim(
            view, ddim(view, x_t, pair.t, middle, moment.batch.condition), middle, pair.s, moment.batch.condition
        )
        clean = pair.s == 0
        goal = lesson.view.x0(x_s, torch.where(clean, 0.5, pair.s), moment.condition)
        goal = torch.where(clean[:, None], x_s, goal)
        guess = lesson.view.x0(x_t, pair.t, moment.condition)
        assert terms["consistency"].item() == pytest.approx(squared(guess, goal).mean().item(), rel=1e-4)


def test_the_students_samples_take_q_steps_of_its_sampler(open_run, begun, monkeypatch):
    asked = []
    original = Segmented.draw
    monkeypatch.setattr(
        Segmented,
        "draw",
        lambda self, *given, **more: asked.append((given[3], self.gamma)) or original(self, *given, **more),
    )
    for changes in ({}, {"gamma": 0.3}):
        with open_run() as run:
            method, lesson, moment = begun(run, **{**ACROSS, "across_steps": 3, **changes})
            method.state(lesson, moment, method.pair(lesson, moment))
    assert asked == [(3, 1.0), (3, 0.3)]  # as the sampler draws: plain jumps drift behind this stage


def test_extras_of_the_second_stage(open_run, begun, pictures, taught):
    with open_run() as run:
        method, lesson, moment = begun(
            run, pictures, taught(), GivenReward.of(lambda x, condition: condition.float()), **ACROSS,
            preference=0.5, threshold=1.5, score=1.0,
            **{"guidance.scale": 1.0, "adversary.weight": 0.2, "adversary.hidden": 4},
        )  # fmt: skip
        (terms,) = method.terms(lesson, moment)
        asked = moment.batch.condition.float()
        hinge = (1.5 - asked).clamp_min(0) + asked.roll(1).clamp_min(0)
        assert terms["preference"].item() == pytest.approx(0.5 * hinge.mean().item())
        assert terms.keys() == {"consistency", "preference", "score", "adversarial"}
        learners = lesson.state.fake.learner, lesson.state.discriminator.learner
        shown = []
        monkey = lesson.state.discriminator.step
        lesson.state.discriminator.step = lambda moment, real: (shown.append(real), monkey(moment, real))
        made = lesson.state.made
        method.after(lesson, moment)
        assert shown[0] is made  # several steps are real, one is made
        assert [learner.steps for learner in learners] == [1, 1]
        assert lesson.state.made is lesson.state.guess is None


def test_both_stages_bring_samples_to_the_gaussian(open_run):
    changes = {**TINY, **ON_POINTS, "train.steps": 250, "train.batch": 48, "train.optimizer.lr": 5e-3, "across": 0.25}
    method = build(MLCM, {**changes, "net.width": 32})
    with open_run() as run:
        sampler = method(run, data=POINTS, teacher=GivenTeacher("exact"))
    for steps in (2, 4):
        x = sampler(500, steps=steps)
        assert x.mean(0).tolist() == pytest.approx([1.0, -0.5], abs=0.15)
        assert x.std(0).mean().item() == pytest.approx(0.3, abs=0.15)


def test_the_papers_setting_runs(open_run, pictures, taught):
    method = build(MLCM, {"train.steps": 7, "train.batch": 4}, preset="paper")
    assert isinstance(method.teaching.process, DiscreteProcess)
    assert (method.guidance.scale, method.states, method.distance, method.target) == (8.0, "trajectory", "l2", None)
    with open_run() as run:
        sampler = method(run, data=pictures, teacher=taught(process=method.teaching.process))
    assert sampler.reading.drawing == Segmented(steps=4, gamma=1.0, learned=1000)
    assert torch.isfinite(sampler(3)).all()


def test_images_are_not_read(open_run, pictures, taught):
    class Shifted(type(pictures)):
        """The same pictures, all of them brighter."""

        def draw_named(self, n, rng):
            """Return brighter pictures."""
            x, which = super().draw_named(n, rng)
            return x + 0.3, which

    made = []
    for data in (pictures, Shifted(pictures.images)):
        method = build(MLCM, {**TINY, **ACROSS, "across": 0.5, "guidance.scale": 1.0})
        with open_run() as run:
            made.append(method(run, data=data, teacher=taught()).fingerprint)
    assert made[0] == made[1]

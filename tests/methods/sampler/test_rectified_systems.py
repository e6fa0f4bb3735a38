"""InstaFlow and SlimFlow: whose pairs, with what guidance and noise, compared how, and what is learned of them."""

import dataclasses
import math

import pytest
import torch
from pipelines import saved

from attar.artifacts import load
from attar.data.samples import ImageSamples, Samples
from attar.diffusion import Mixture
from attar.diffusion.specs import DiscreteProcess, FlowProcess
from attar.errors import RecipeError
from attar.methods.sampler.core.perception import Sight
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.instaflow import InstaFlow
from attar.methods.sampler.rectified_flow import one_step
from attar.methods.sampler.slimflow import SlimFlow, annealed, guided_target
from attar.nets.denoiser_specs import ResidualMLP
from attar.spec import build

VP = DiscreteProcess(betas="scaled-linear")
SMALL_JUDGE = {"net": {"kind": "convnet", "depth": 1, "width": 4}, "training": {"steps": 3, "batch": 9}}
PAIRS = {"count": 40, "steps": 2}
TINY = {"train": {"steps": 2, "batch": 8}, "coupling": PAIRS, "distil_steps": 2}
INSTA = {**TINY, "own_coupling": PAIRS, "perceptual_steps": 0}
SLIM = {**TINY, "net": {"kind": "residual-mlp", "width": 8, "blocks": 1}, "compared": "pixels", "flip": False}
POINTS = Samples.of(Mixture.gaussian(torch.tensor([1.0, -0.5]), 0.3))


@pytest.fixture
def begun(pictures, taught):
    """Return a function that starts a method and enters its phases up to one."""

    def start(run, cls, told, phase=0, process=None, **changes):
        method = build(cls, {**told, **changes})
        lesson = method.begin(run, pictures, taught(process=process or VP))
        lesson.state = method.build(lesson)
        for entered in method.phases()[: phase + 1]:
            method.enter(lesson, entered)
        return method, lesson, method.phases()[phase]

    return start


def test_rounds_and_references_have_noise_of_their_own(open_run, pictures, taught):
    coupling = build(InstaFlow, {"coupling": {"count": 4, "steps": 1}}).coupling
    with open_run() as run:
        streams = ("", "round 0 ", "round 1 ", "reference ")
        sets = [run.stage("pairs", coupling, data=pictures, teacher=taught(), stream=one) for one in streams]
        again = run.stage("others", coupling, data=pictures, teacher=taught())
    assert torch.equal(again.noise, sets[0].noise)  # a stage of the same name or another
    assert len({bytes(pairs.noise.numpy()) for pairs in sets}) == 4


def test_the_second_round_draws_other_noise(open_run, pictures, taught):
    with open_run() as run:
        method = build(InstaFlow, {**INSTA, "rounds": 2, "distil_steps": 0, "perceptual_steps": 0})
        lesson = method.begin(run, pictures, taught())
        noises = []
        for phase in method.phases():
            method.enter(lesson, phase)
            noises.append(lesson.state.pairs.noise)
    assert not (noises[0].flatten(1)[:, None] == noises[1].flatten(1)[None]).all(-1).any()


def number(loss):
    return float(loss.detach())


def total(terms):
    return sum(number(sum(one.values())) for one in terms)


class TestInstaFlow:
    """A guided teacher on any process becomes straight, then one step."""

    def test_phases_are_reflow_then_squared_errors_then_a_perceptual_distance(self):
        assert [(phase.name, phase.steps) for phase in InstaFlow().phases()] == [
            ("reflow 0", 25_000), ("distil", 21_500), ("perceive", 18_000),
        ]  # fmt: skip
        alone = build(InstaFlow, {"distil_steps": 0, "perceptual_steps": 0})
        assert [phase.name for phase in alone.phases()] == ["reflow 0"]
        assert (InstaFlow().drawing().steps, alone.drawing().steps) == (1, 25)

    def test_one_falling_rate_reaches_the_end_of_the_perceptual_distance(self, open_run, begun):
        falling = {**INSTA, "perceptual_steps": 2, "perceptual": SMALL_JUDGE, "train.schedule": "cosine"}
        with open_run() as run:
            _, lesson, _ = begun(run, InstaFlow, falling, phase=1)
            learner = lesson.learner
            assert (learner.steps, learner.total_steps) == (0, 4)
            learner.steps = 2  # as squared errors end
            method, phase = build(InstaFlow, falling), build(InstaFlow, falling).phases()[2]
            method.enter(lesson, phase)
            assert (learner.steps, learner.total_steps) == (2, 4)
            assert learner.schedule.factor(learner.steps, learner.total_steps) == pytest.approx(0.5)

    def test_told_guidance_and_pairs_of_its_own_are_refused_before_any_training(self, open_run, begun):
        told = {**INSTA, "guidance.highest": 8.0, "guidance.embedded": True}
        with open_run() as run, pytest.raises(RecipeError, match="rounds=0"):
            begun(run, InstaFlow, told, phase=-1)
        with open_run() as run:
            begun(run, InstaFlow, told, phase=-1, distil_steps=0)

    def test_the_teachers_weights_are_read_as_a_velocity(self, open_run, begun):
        with open_run() as run:
            _, lesson, _ = begun(run, InstaFlow, INSTA)
            view, teacher = lesson.view, lesson.teacher.view
            assert (view.prediction, lesson.student.reading.process) == ("velocity", FlowProcess())
            x, which = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
            k = torch.full((3,), 600 / 1000, dtype=torch.float64)  # a network of ours is told k / 1000
            told = teacher.process.label(k) / 1000
            torch.testing.assert_close(view.output(x, told, which), teacher.output(x, k, which))

    def test_the_first_pairs_are_the_guided_teachers_and_the_next_the_guided_students(self, open_run, begun):
        with open_run() as run:
            _, lesson, _ = begun(run, InstaFlow, INSTA)
            pairs, teacher = lesson.state.pairs, lesson.teacher.sampler
            assert lesson.state.flow is None
            drawing = InstaFlow().teaching.drawing
            by_hand = teacher.with_module(
                teacher.module, drawing=dataclasses.replace(drawing, solver="dpmpp-2m", steps=2)
            )
            again = by_hand(40, pairs.which, noise=pairs.noise.float(), guidance=6.0)
            torch.testing.assert_close(again, pairs.ends.float(), atol=0.02, rtol=0.02)
        with open_run() as run:
            _, lesson, _ = begun(run, InstaFlow, INSTA, phase=1)
            pairs, flow = lesson.state.pairs, lesson.state.flow
            euler = flow.with_module(flow.module, drawing=dataclasses.replace(drawing, solver="euler", steps=2))
            for guidance, same in ((1.5, True), (1.0, False)):
                again = euler(40, pairs.which, noise=pairs.noise.float(), guidance=guidance)
                assert torch.allclose(again, pairs.ends.float(), atol=0.02) is same

    def test_reflow_drops_conditions_and_distillation_none(self, open_run, begun):
        with open_run() as run:
            method, lesson, phase = begun(run, InstaFlow, INSTA, phase=1, drop=0.5)
            reflow = method.moment(lesson, method.phases()[0], 0).condition
            later = method.moment(lesson, phase, 0).condition
            assert (reflow == 3).any()
            assert not (later == 3).any()
            assert torch.equal(reflow[reflow != 3], later[reflow != 3])

    def test_the_losses_are_written_out(self, open_run, begun):
        with open_run(seed=3) as run:
            method, lesson, phase = begun(run, InstaFlow, INSTA)
            moment = method.moment(lesson, phase, 1)
            x0, noise, module = moment.batch.x0, moment.batch.noise, lesson.student.module
            t = method.times.draw(8, lesson.process, run.rng("time", 1)).float()
            rows = t.reshape(-1, 1, 1, 1)
            guess = module((1 - rows) * x0 + rows * noise, t, moment.condition)
            assert total(method.terms(lesson, moment)) == pytest.approx(
                number((guess - (noise - x0)).square().mean()), rel=1e-4
            )
        with open_run(seed=3) as run:
            method, lesson, phase = begun(run, InstaFlow, INSTA, phase=1)
            moment = method.moment(lesson, phase, 1)
            x0, noise = moment.batch.x0, moment.batch.noise
            made = noise - lesson.student.module(noise, torch.ones(8), moment.condition)
            assert total(method.terms(lesson, moment)) == pytest.approx(number((made - x0).square().mean()), rel=1e-4)

    def test_the_last_phase_keeps_the_pairs_and_compares_by_a_classifier(self, open_run, begun):
        with open_run() as run:
            _, before, _ = begun(run, InstaFlow, INSTA, phase=1)
        with open_run() as run:
            method, lesson, phase = begun(run, InstaFlow, INSTA, phase=2, perceptual_steps=2, perceptual=SMALL_JUDGE)
            assert torch.equal(lesson.state.pairs.ends, before.state.pairs.ends)
            moment = method.moment(lesson, phase, 0)
            made = one_step(lesson.view, moment.batch.noise, moment.condition)
            want = lesson.state.perception(made, moment.batch.x0).mean()
            assert total(method.terms(lesson, moment)) == pytest.approx(number(want), rel=1e-5)

    def test_what_is_no_picture_is_refused_before_anything_is_trained(self, open_run):
        method = build(InstaFlow, {"teaching.net": {"kind": "mlp", "width": 8, "depth": 1}})
        with open_run() as run:
            lesson = method.begin(run, POINTS, GivenTeacher("exact"))
            with pytest.raises(RecipeError, match="perceptual_steps=0"):
                method.build(lesson)

    def test_a_flow_that_is_straightened_alone_draws_with_its_guidance(self, open_run, pictures, taught):
        for distil_steps, guidance, evaluations in ((0, 1.5, 2), (2, 6.0, 1)):
            with open_run() as run:
                method = build(InstaFlow, {**INSTA, "distil_steps": distil_steps, "steps": 1})
                made = method(run, data=pictures, teacher=taught(process=VP))
            assert made.reading.guidance == guidance
            rows = []
            made.module.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(len(given[0])))
            made(4)
            assert sum(rows) == 4 * evaluations

    def test_a_straight_flow_of_gaussians_is_learned_in_one_step(self, open_run):
        fields = {
            **INSTA, "coupling": {"count": 512, "solver": "heun", "steps": 8},
            "own_coupling": {"count": 512, "steps": 4},
            "teaching": {"net": {"kind": "mlp", "width": 32, "depth": 2}, "process": "flow"}, "guidance.scale": 1.0,
            "own_guidance": 1.0, "drop": 0.0, "train": {"steps": 250, "batch": 64, "optimizer": {"lr": 3e-3}},
            "distil_steps": 100,
        }  # fmt: skip
        with open_run() as run:
            made = build(InstaFlow, fields)(run, data=POINTS, teacher=GivenTeacher("exact"))
        noise = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        want = torch.tensor([1.0, -0.5]) + 0.3 * noise
        assert number((made(400, noise=noise) - want).square().mean().sqrt()) < 0.1

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
    def test_a_pipeline_becomes_one_step_and_its_latents_are_compared_as_pictures(
        self, open_run, tiny_images, tmp_path
    ):
        pictures = ImageSamples(tiny_images(classes=2, channels=1, size=16, each=6))
        given = GivenTeacher.of(f"hf:{saved('SD', tmp_path)}")
        sizes = {"count": 4, "steps": 2}
        fields = {
            "train": {"steps": 1, "batch": 2}, "coupling": sizes, "own_coupling": sizes, "distil_steps": 1,
            "perceptual_steps": 1, "perceptual": SMALL_JUDGE,
        }  # fmt: skip
        with open_run() as run:
            made = build(InstaFlow, fields)(run, data=pictures, teacher=given)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(Sight.of(pictures, given)(x), given.given.pixels(x).mean(1, keepdim=True))
        again = load(made.save(tmp_path / "student"))
        labels = []
        again.module.register_forward_pre_hook(lambda _, shown: labels.append(float(shown[1][0])))
        drawn = again(2, [0, 1])
        assert drawn.shape == (2, 4, 8, 8)
        torch.testing.assert_close(drawn, made(2, [0, 1]))
        assert labels == [1000.0]  # these networks count steps: (1 − i/N) · 1000


class TestSlimFlow:
    """A small network of its own, from flow matching to reflow to one step."""

    def test_beta_falls_from_one_to_zero_and_noise_stays_unit(self):
        method = SlimFlow()
        steps = method.train.steps
        assert (method.beta(0, steps), method.beta(150_000, steps), method.beta(300_000, steps)) == (1.0, 0.5, 0.0)
        assert method.beta(steps - 1, steps) == 0.0
        cosine = build(SlimFlow, {"curve": "cosine"})
        assert cosine.beta(150_000, steps) == pytest.approx(math.sqrt(0.5))
        assert build(SlimFlow, {"annealing": 0.0}).beta(0, steps) == 0.0
        rng = torch.Generator().manual_seed(0)
        noise, fresh = (torch.randn(20_000, generator=rng) for _ in range(2))
        for beta in (0.0, 0.3, 0.7, 1.0):
            assert float(annealed(noise, fresh, beta).std()) == pytest.approx(1.0, abs=0.02)
        assert torch.equal(annealed(noise, fresh, 0.0), noise)
        assert torch.equal(annealed(noise, fresh, 1.0), fresh)

    def test_the_student_is_another_network_with_fresh_weights_on_flow(self, open_run, begun):
        with open_run() as run:
            _, lesson, _ = begun(run, SlimFlow, SLIM)
            assert lesson.student.net == ResidualMLP(width=8, blocks=1)
            assert lesson.view.prediction == "velocity"
            assert lesson.student.reading.process == FlowProcess()
            assert lesson.teacher.sampler.reading.process == VP

    def test_annealed_noise_is_what_reflow_goes_to(self, open_run, begun):
        with open_run(seed=4) as run:
            method, lesson, phase = begun(run, SlimFlow, {**SLIM, "train": {"steps": 10, "batch": 8}})
            for step, beta in ((0, 1.0), (3, 0.5), (6, 0.0)):
                moment = method.moment(lesson, phase, step)
                pairs = lesson.state.pairs
                mine = torch.randint(len(pairs), (8,), generator=run.rng("pairs", step))
                fresh = torch.randn(8, 1, 8, 8, generator=run.rng("annealing", step))
                want = math.sqrt(1 - beta**2) * pairs.noise[mine] + beta * fresh
                torch.testing.assert_close(moment.batch.noise, want)
                assert torch.equal(moment.batch.x0, pairs.ends[mine])

    def test_noise_and_sample_are_mirrored_together_for_half_the_pairs(self, open_run, begun):
        with open_run() as run:
            fields = {**SLIM, "train": {"steps": 2, "batch": 64}, "annealing": 0.0}
            plain_method, lesson, phase = begun(run, SlimFlow, fields)
            plain = plain_method.moment(lesson, phase, 0).batch
            turned = build(SlimFlow, {**fields, "flip": True}).moment(lesson, phase, 0).batch
            which = [
                [torch.equal(getattr(turned, part)[row], getattr(plain, part)[row].flip(-1)) for row in range(64)]
                for part in ("x0", "noise")
            ]
            assert which[0] == which[1]
            assert 16 < sum(which[0]) < 48
            kept = [row for row in range(64) if not which[0][row]]
            assert torch.equal(turned.x0[kept], plain.x0[kept])

    def test_the_guided_target_is_two_euler_steps(self, open_run, begun):
        with open_run() as run:
            _, lesson, _ = begun(run, SlimFlow, SLIM, phase=1)
            flow, which = lesson.state.flow.denoiser, torch.tensor([0, 2])
            noise, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.7], dtype=torch.float64)
            first = flow.velocity(noise, torch.ones(2, dtype=torch.float64), which)
            rows = t.float().reshape(-1, 1, 1, 1)
            x_t = noise + (rows - 1) * first
            want = x_t + (0 - rows) * lesson.state.flow.module(x_t, t.float(), which)
            torch.testing.assert_close(guided_target(flow, first, noise, t, which), want)

    @pytest.mark.parametrize("first", ["student", "flow"])
    def test_distillation_is_written_out(self, open_run, begun, first):
        with open_run(seed=5) as run:
            method, lesson, phase = begun(run, SlimFlow, SLIM, phase=1, first=first, guiding=0.5)
            with torch.no_grad():
                for parameter in lesson.student.module.parameters():
                    parameter.add_(0.05)  # away from the flow that it began as
            moment = method.moment(lesson, phase, 1)
            x0, noise, told = moment.batch.x0, moment.batch.noise, moment.condition
            student, flow, one = lesson.student.module, lesson.state.flow.module, torch.ones(8)
            pairs, guided = list(method.terms(lesson, moment))
            made = noise - student(noise, one, told)
            assert number(pairs["pairs"]) == pytest.approx(number((made - x0).square().mean()), rel=1e-4)
            fresh = torch.randn(8, 1, 8, 8, generator=run.rng("guided noise", 1))
            t = method.meeting.draw(8, lesson.process, run.rng("meeting", 1)).float()
            assert t.min() >= 0.2
            assert t.max() <= 0.8
            slope = (student if first == "student" else flow)(fresh, one, told)
            x_t = fresh - (1 - t.reshape(-1, 1, 1, 1)) * slope
            target = x_t - t.reshape(-1, 1, 1, 1) * flow(x_t, t, told)
            made = fresh - student(fresh, one, told)
            assert number(guided["guided"]) == pytest.approx(0.5 * number((made - target).square().mean()), rel=1e-4)
            guided["guided"].backward()
            by_hand = torch.autograd.grad(
                0.5 * (made - target.detach()).square().mean(), list(student.parameters()), allow_unused=True
            )
            for parameter, gradient in zip(student.parameters(), by_hand, strict=True):
                if gradient is not None:  # nothing passes through the target
                    torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
            assert all(parameter.grad is None for parameter in flow.parameters())

    def test_pairs_alone_where_nothing_guides(self, open_run, begun):
        with open_run() as run:
            method, lesson, phase = begun(run, SlimFlow, SLIM, phase=1, guiding=0.0)
            assert [list(terms) for terms in method.terms(lesson, method.moment(lesson, phase, 0))] == [["pairs"]]

    def test_pictures_are_compared_by_a_classifier_by_numbers_or_both(self, open_run, begun):
        found = {}
        for compared in ("pixels", "perceptual", "both"):
            with open_run(seed=6) as run:
                method, lesson, _ = begun(run, SlimFlow, SLIM, phase=1, compared=compared, perceptual=SMALL_JUDGE)
                rng = torch.Generator().manual_seed(0)
                x, y = (torch.rand(4, 1, 8, 8, generator=rng) * 2 - 1 for _ in range(2))
                found[compared] = method.apart(lesson, x, y)
        torch.testing.assert_close(found["pixels"], (x - y).square().flatten(1).mean(1))
        assert float(found["perceptual"].min()) > 0
        torch.testing.assert_close(found["both"], found["pixels"] + found["perceptual"])
        method = build(SlimFlow, {**SLIM, "net": {"kind": "mlp", "width": 8, "depth": 1}, "compared": "both"})
        with open_run() as run:
            lesson = method.begin(run, POINTS, GivenTeacher("exact"))
            with pytest.raises(RecipeError, match="compared=pixels"):
                method.build(lesson)

    def test_the_papers_mechanisms_run_together(self, open_run, pictures, taught):
        fields = {
            "net": {"kind": "unet", "width": 8, "multipliers": (1, 2), "dropout": 0.15}, "coupling": PAIRS,
            "train": {"steps": 2, "batch": 4}, "distil_steps": 1, "perceptual": SMALL_JUDGE,
        }  # fmt: skip
        with open_run() as run:
            made = build(SlimFlow, fields)(run, data=pictures, teacher=taught())
        assert made(2).isfinite().all()
        assert made.steps == 1

"""Guidance distillation in three ways: zero for the student that is its guided teacher, and for no other."""

from __future__ import annotations

import dataclasses

import exact
import pytest
import torch
from torch import nn

from attar.artifacts import load
from attar.artifacts.adapted import AdaptedSampler
from attar.artifacts.drawing import Encode, Ode, Overshoot
from attar.artifacts.sampler import Reading, Sampler
from attar.data.samples import Labelled, PointSamples
from attar.diffusion import Cosine, Flow, Guided, Mixture, eps_of_jump, integrate
from attar.diffusion.specs import CosineProcess, FlowProcess
from attar.diffusion.view import View
from attar.errors import RecipeError
from attar.methods.sampler.agd import AdapterGuidance
from attar.methods.sampler.consistency import Consistency
from attar.methods.sampler.core.coupling import Coupling, chosen_rows
from attar.methods.sampler.core.distillation import Lesson
from attar.methods.sampler.core.teacher import GivenTeacher, Teacher, TeacherGuidance
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.guided_distillation import GuidedDistillation
from attar.methods.sampler.lora_distillation import LoRADistillation
from attar.nets.adapter_specs import GuidanceAdapters, LoRA
from attar.nets.denoiser_specs import DiffusersNet, DiT, Extras, PointMLP, ResidualMLP
from attar.nets.denoisers import parted
from attar.spec import build
from group import as_group

DATA = PointSamples(Mixture.ring(modes=4, std=0.2))
TRAIN = SamplerTraining(batch=64)
PROCESS = Cosine()
STORE = Coupling(count=32, solver="ddim", steps=8, kept=1)


class GuidedExactly(nn.Module):
    """A network whose v is that of the exact guided mixture: at the w it is told, or at a fixed one."""

    def __init__(self, w: float | None = None, off: float = 0.0) -> None:
        super().__init__()
        self.nothing, self.w, self.off = nn.Parameter(torch.zeros(())), w, off
        self.seen: list[torch.Tensor | None] = []

    def forward(self, x, label, condition):
        own, told, _ = parted(condition)
        self.seen.append(told)
        w = torch.full((len(x),), self.w) if told is None else told
        view: View = Labelled(DATA.mixture.view(PROCESS), len(DATA.conditions))
        guided = Guided(view, DATA.null, w, "w")
        x0, eps = guided.x0_eps(x.double(), label.double(), own)
        alpha, sigma = (part(label.double())[:, None] for part in (PROCESS.alpha, PROCESS.sigma))
        return (alpha * eps - sigma * (x0 + self.off)).to(x.dtype) + self.nothing


def lesson(run, method, student):
    """The exact unguided teacher, and a student."""
    reading = Reading(process=CosineProcess(), prediction="v")
    known = Sampler(GuidedExactly(0.0), PointMLP(), DATA.form, reading, conditions=DATA.conditions)
    teacher = Teacher(DATA.exact(PROCESS), DATA.null, known)
    made = Sampler(student, PointMLP(), DATA.form, reading, extras=Extras(guidance=True), conditions=DATA.conditions)
    learner = method.train.learner(run, "student", student)
    begun = Lesson(run, DATA, teacher, made, learner)
    begun.state = method.build(begun)
    return begun


def loss(run, method, student, phase=0):
    begun = lesson(run, method, student)
    where = method.phases()[phase]
    return sum(
        float(v.detach()) for terms in method.terms(begun, method.moment(begun, where, 0)) for v in terms.values()
    )


METHODS = {
    "guided-distillation": GuidedDistillation(train=TRAIN),
    "lora-distillation": LoRADistillation(train=TRAIN, guidance=TeacherGuidance(scale=4.0)),
    "agd": AdapterGuidance(train=TRAIN, trajectories=STORE),
    "agd on data": AdapterGuidance(train=TRAIN, trajectories=STORE, states="data"),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_student_that_is_its_guided_teacher_has_no_loss(name, open_run):
    with open_run() as run:
        assert loss(run, METHODS[name], GuidedExactly(w=3.0)) < 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_a_student_that_takes_g_for_w_has_one(name, open_run):
    class OffByOne(GuidedExactly):
        def forward(self, x, label, condition):
            own, told, _ = parted(condition)
            return super().forward(x, label, {"condition": own, "guidance": 1 + (3.0 if told is None else told)})

    with open_run() as run:
        assert loss(run, METHODS[name], OffByOne(w=4.0)) > 1e-3


def test_guidance_is_drawn_for_each_sample_and_told_as_w(open_run):
    student = GuidedExactly()
    with open_run() as run:
        loss(run, GuidedDistillation(train=TRAIN), student)
    w = student.seen[-1]
    assert 0 <= float(w.min()) < 0.5
    assert 3.5 < float(w.max()) <= 4
    assert len(w.unique()) == 64


def test_the_first_stage_weighs_the_error_of_x0_by_the_truncated_snr(open_run):
    method = GuidedDistillation(train=TRAIN)
    with open_run() as run:
        t = method.guidance_times.draw(64, PROCESS, run.rng("time", 0))
        weights = (PROCESS.alpha(t) / PROCESS.sigma(t)).square().clamp_min(1)
        # near t = π/2 a v that is off by σ d is an x0 off by σ² d
        found = loss(run, method, GuidedExactly(off=0.1))
        expected = (weights * (0.1 * PROCESS.sigma(t) ** 2).square()).mean()
    assert found == pytest.approx(float(expected), rel=1e-3)


class TestRounds:
    """Stage 2: rounds of halving from the student of stage 1."""

    METHOD = GuidedDistillation(
        train=dataclasses.replace(GuidedDistillation().train, steps=10, batch=64, average=0.0),
        guidance_steps=7,
        teacher_steps=16,
        steps=1,
        longer=2.0,
    )

    def test_rounds_follow_the_first_stage_and_the_last_are_longer(self):
        phases = self.METHOD.phases()
        assert [phase.name for phase in phases] == ["guidance", "8 steps", "4 steps", "2 steps", "1 steps"]
        assert [phase.steps for phase in phases] == [7, 10, 10, 20, 20]
        assert [phase.settings["first"] for phase in phases] == [True, False, False, False, False]
        assert len(dataclasses.replace(self.METHOD, steps=16).phases()) == 1

    @pytest.mark.parametrize("steps", [3, 32])
    def test_steps_that_halving_does_not_meet_are_refused(self, steps):
        with pytest.raises(RecipeError, match="16 steps are halved to 8, 4, 2, 1"):
            build(GuidedDistillation, {"teacher_steps": 16, "steps": steps})

    def test_a_round_is_taught_by_the_last_student_at_the_same_guidance_and_nobody_guides_twice(self, open_run):
        student = GuidedExactly()
        with open_run() as run:
            begun = lesson(run, self.METHOD, student)
            begun.teacher = dataclasses.replace(begun.teacher, view=None)  # stage 2 asks it nothing
            teacher = begun.state.module
            student.seen.clear()
            teacher.seen.clear()
            list(self.METHOD.terms(begun, self.METHOD.moment(begun, self.METHOD.phases()[1], 0)))
        assert len(teacher.seen) == 2
        assert all(torch.equal(w, student.seen[0]) for w in teacher.seen)

    def test_every_phase_begins_with_the_learning_rate_of_its_first_step(self, open_run):
        with open_run() as run:
            begun = lesson(run, self.METHOD, GuidedExactly())
            rates = []
            for phase in self.METHOD.phases()[:3]:
                self.METHOD.enter(begun, phase)
                for _ in range(phase.steps):
                    begun.student.module.nothing.grad = torch.ones(())
                    begun.learner.step()
                    rates.append(begun.learner.optimizer.param_groups[0]["lr"])
        firsts = [rates[0], rates[7], rates[17]]
        assert firsts == pytest.approx([1e-4] * 3)
        assert rates[6] < 0.2e-4
        assert rates[16] < 0.2e-4

    def test_guidance_must_be_told(self):
        with pytest.raises(RecipeError, match="told its guidance"):
            build(GuidedDistillation, {"guidance.embedded": False})


class TestStochastic:
    """Stage 2 for a student of N steps that goes from t to t − 2/N and is noised up to t − 1/N."""

    METHOD = GuidedDistillation(train=TRAIN, teacher_steps=16, steps=2, guidance_steps=2, stochastic=True)

    def moment(self, run, method, phase):
        """A round on Gaussian points: both networks go exactly where two steps of their own grids lead."""
        steps = method.phases()[phase].settings["steps"]

        def leaping(length):
            return exact.student(lambda t: (t - length / steps).clamp_min(0))

        begun = exact.lesson(run, method, leaping(2))
        begun.state = leaping(1)  # the teacher's grid is twice as fine
        return begun, method.moment(begun, method.phases()[phase], 0)

    def test_pairs_are_two_steps_of_the_grid_and_end_at_the_data(self, open_run):
        with open_run() as run:
            begun, moment = self.moment(run, self.METHOD, 1)
            t, middle, s = self.METHOD.times(begun.process, moment)
        assert sorted({round(float(v) * 8) for v in t}) == [1, 2, 3, 4, 5, 6, 7, 8]
        for here, between, there in zip(*((8 * v).tolist() for v in (t, middle, s)), strict=True):
            assert (between, there) == pytest.approx((here - 1, here - 2) if here > 1.5 else (1, 0))

    @pytest.mark.parametrize("phase", [1, 2, 3])
    def test_the_student_that_goes_twice_as_far_has_no_loss_in_any_round(self, phase, open_run):
        def loss(method):
            with open_run() as run:
                begun, moment = self.moment(run, method, phase)
                return sum(float(v.detach()) for terms in method.terms(begun, moment) for v in terms.values())

        assert loss(self.METHOD) < 1e-6
        assert loss(dataclasses.replace(self.METHOD, stochastic=False)) > 1e-3

    def test_the_student_is_drawn_as_it_was_taught(self):
        assert self.METHOD.drawing() == Overshoot(steps=2)
        assert dataclasses.replace(self.METHOD, stochastic=False).drawing() == Ode(steps=2)
        with pytest.raises(RecipeError, match="drawn anew in a single step"):
            build(GuidedDistillation, {"stochastic": True, "steps": 1})

    def test_samples_are_drawn_anew_behind_the_same_noise(self, open_run, pictures, taught):
        fields = {**SHRUNK, "guidance_steps": 2, "teacher_steps": 4, "steps": 2, "stochastic": True}
        with open_run() as run:
            made = build(GuidedDistillation, fields)(run, data=pictures, teacher=taught(process=CosineProcess()))
        noise = torch.randn(2, *made.shape)
        first, again, other = (made(2, [0, 1], noise=noise, rng=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=1e-3)


class ExactUp(exact.Exact):
    """A network whose ε leads exactly up to `end(t)` by DDIM, from the data on; its velocity may be `off`."""

    off = 0.0

    def forward(self, x, label, condition=None):
        t = label.double()
        s = self.end(t)
        eps = eps_of_jump(self.process, x.double(), exact.carried(self.process, x, t, s), t, s)
        return ((eps - x) / (1 - t)[:, None] + self.off).to(x.dtype) + self.nothing


class TestEncoder:
    """Stage 2 upwards: rounds of halving the steps from samples to their noise."""

    METHOD = GuidedDistillation(train=TRAIN, teacher_steps=8, steps=2, guidance_steps=2, direction="encode")

    def leaping(self, length, **changes):
        def end(t):
            return (t + length).clamp_max(1)

        return exact.student(end).with_module(ExactUp(Flow(), end), **changes)

    def loss(self, run, phase, off=0.0):
        """The loss of a student that is exact but for what it is off, and the times of its samples."""
        method, steps = self.METHOD, self.METHOD.phases()[phase].settings["steps"]
        begun = exact.lesson(run, method, self.leaping(1 / steps))
        begun.student.module.off = off
        begun.state = self.leaping(1 / steps / 2)
        moment = method.moment(begun, method.phases()[phase], 0)
        (terms,) = method.terms(begun, moment)
        return float(terms["encoding"].detach()), method.times(begun.process, moment)

    @pytest.mark.parametrize("phase", [1, 2])
    def test_the_student_of_one_step_for_two_has_no_loss_from_the_data_on(self, phase, open_run):
        with open_run() as run:
            found, (t, middle, s) = self.loss(run, phase)
        assert found < 1e-8
        assert float(t.min()) == 0
        assert float(s.max()) == 1
        assert ((t + s) / 2).tolist() == pytest.approx(middle.tolist())

    def test_its_error_weighs_what_the_errors_of_a_decoder_weigh(self, open_run):
        with open_run() as run:
            found, (t, _, _) = self.loss(run, 1, off=0.1)
        # ε is off by α d where the velocity is off by d, and ω σ²/α² is max(1, σ²/α²)
        assert found == pytest.approx(float((0.1 * torch.maximum(1 - t, t)).square().mean()), rel=1e-3)

    def test_what_four_steps_encode_four_steps_decode(self):
        x = exact.GAUSSIAN.sample(6, torch.Generator().manual_seed(0)).float()
        noise = self.leaping(1 / 4, drawing=Encode(steps=4))(6, noise=x)
        zeros, ones = torch.zeros(6).double(), torch.ones(6).double()
        assert torch.allclose(noise.double(), exact.carried(Flow(), x, zeros, ones), atol=1e-5)
        decoder = exact.student(lambda t: (t - 1 / 4).clamp_min(0))
        assert torch.allclose(decoder(6, noise=noise, steps=4), x, atol=1e-5)

    def test_an_encoder_is_made_and_kept(self, open_run, pictures, taught, tmp_path):
        fields = {**SHRUNK, "guidance_steps": 2, "teacher_steps": 4, "steps": 2, "direction": "encode"}
        with open_run() as run:
            made = build(GuidedDistillation, fields)(run, data=pictures, teacher=taught(process=CosineProcess()))
        assert made.reading.drawing == Encode(steps=2)
        x, _ = pictures.draw(2, torch.Generator().manual_seed(0))
        assert load(made.save(tmp_path / "encoder"))(2, [0, 1], noise=x).isfinite().all()
        with open_run() as run, pytest.raises(RecipeError, match="holds no noise at t = 0"):
            build(GuidedDistillation, fields)(
                run, data=pictures, teacher=taught(process=FlowProcess(), prediction="x0")
            )

    def test_nothing_is_drawn_anew_to_encode(self):
        with pytest.raises(RecipeError, match="or to encode"):
            build(GuidedDistillation, {"stochastic": True, "direction": "encode"})


class TestTrajectories:
    """AGD: the states of guided trajectories, and the prediction that led from one to the next."""

    def test_states_are_those_of_the_guided_ode_with_their_own_scale(self, open_run):
        method = METHODS["agd"]
        with open_run() as run:
            begun = lesson(run, method, GuidedExactly())
            stored = begun.state
            moment = method.moment(begun, method.phases()[0], 0)
            rows = chosen_rows(run, stored, 64, 0)
            guided = Guided(begun.teacher.view, DATA.null, stored.scales[rows], "g")
            times, seen = PROCESS.grid(8), []
            noise = stored.noise[rows].double()
            condition = DATA.condition(stored.which[rows])
            seen.append(noise)
            ends = integrate(guided, noise, times, condition, callback=lambda _, x: seen.append(x))
            for place in range(8):
                x_t, x_s = method.states_of(begun, moment, torch.full((64,), place))
                torch.testing.assert_close(x_t.double(), seen[place], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(x_s.double(), [*seen[1:8], ends][place], atol=1e-4, rtol=1e-4)
        assert 1 <= float(stored.scales.min()) < 2
        assert 5 < float(stored.scales.max()) <= 6

    def test_half_precision_would_drown_the_difference_of_states(self):
        with pytest.raises(RecipeError, match=r"trajectories\.half=no"):
            build(AdapterGuidance, {"trajectories.half": True})

    def test_no_teacher_is_asked_in_training(self, open_run):
        with open_run() as run:
            begun = lesson(run, METHODS["agd"], GuidedExactly())
            begun.teacher = None
            moment = METHODS["agd"].moment(begun, METHODS["agd"].phases()[0], 0)
            assert list(METHODS["agd"].terms(begun, moment))

    def test_noised_samples_are_as_many(self, open_run):
        with open_run() as run:
            stored = lesson(run, METHODS["agd on data"], GuidedExactly()).state
        assert len(stored) == 32
        assert stored.path is None
        assert len(stored.scales.unique()) == 32

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"lora.rank": 2}, "leave lora"),
            ({"guidance.embedded": False}, "told guidance"),
            ({"trajectories.solver": "heun"}, "read off DDIM"),
        ],
    )
    def test_what_cannot_be_is_refused(self, fields, says):
        with pytest.raises(RecipeError, match=says):
            build(AdapterGuidance, fields)


SHRUNK = {"train.steps": 2, "train.batch": 4}
PAPER = {
    "guided-distillation": {"guidance_steps": 2, "teacher_steps": 4, "steps": 1},
    "lora-distillation": {},
    "agd": {"trajectories.count": 6, "trajectories.steps": 3},
}
CLASSES = {"guided-distillation": GuidedDistillation, "lora-distillation": LoRADistillation, "agd": AdapterGuidance}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_setting_runs_on_a_network_with_attention(name, open_run, pictures, taught):
    method = build(CLASSES[name], {**SHRUNK, **PAPER[name]}, name=name)
    process = CosineProcess() if name == "guided-distillation" else None
    teacher = taught(DiT(width=16, depth=1, heads=2), process)
    with open_run() as run:
        made = method(run, data=pictures, teacher=teacher)
    assert made(2, [0, 1], steps=1).isfinite().all()
    assert isinstance(made, AdaptedSampler) == (name != "guided-distillation")


@pytest.mark.parametrize("name", PAPER)
def test_the_small_preset_can_be_made(name):
    small = build(CLASSES[name], preset="small", name=name)
    assert small.train.steps <= 2000


def test_the_frozen_teacher_is_the_base_and_only_updates_come_out(open_run, pictures, taught):
    teacher = taught()
    before = teacher.given.fingerprint
    method = build(LoRADistillation, {**SHRUNK, "lora.layers": "all", "train.optimizer.lr": 0.01})
    with open_run() as run:
        made = method(run, data=pictures, teacher=teacher)
    assert teacher.given.fingerprint == before == made.base.fingerprint
    assert {id(p) for p in teacher.given.module.parameters()} < {id(p) for p in made.module.parameters()}
    assert all(".lora_" in name for name in made.module.state_dict())
    with made.adapted.off():
        assert torch.equal(made(3, [0, 1, 2], steps=2), teacher.given.with_module(
            teacher.given.module, drawing=made.reading.drawing)(3, [0, 1, 2], steps=2))  # fmt: skip


def test_without_updates_all_weights_of_a_copy_are_trained(open_run, pictures, taught):
    teacher = taught()
    method = dataclasses.replace(build(LoRADistillation, SHRUNK), lora=None)
    with open_run() as run:
        made = method(run, data=pictures, teacher=teacher)
    assert type(made) is Sampler
    assert made.fingerprint != teacher.given.fingerprint


def test_any_sampler_method_can_train_updates_and_keep_their_average(open_run, pictures, taught):
    fields = {**SHRUNK, "lora.rank": 2, "lora.layers": "all", "pairs.intervals": 4, "target": 0.5}
    fields |= {"guidance.highest": 3.0, "guidance.embedded": True, "train.average": 0.5}
    teacher = taught(ResidualMLP(width=16, blocks=1))
    with open_run() as run:
        begun = build(Consistency, fields).begin(run, pictures, teacher)
        shared = {id(p) for p in teacher.given.module.parameters()}
        for average in begun.learner.ema.values():
            assert shared < {id(p) for p in average.parameters()}
        assert not shared & {id(p) for p in begun.learner.parameters}
    with open_run() as run:
        made = build(Consistency, fields)(run, data=pictures, teacher=teacher)
    assert isinstance(made, AdaptedSampler)
    assert any(name.startswith("network.guidance") for name in made.module.state_dict())


def test_a_student_with_updates_teaches_with_its_merged_weights(open_run, pictures, taught):
    method = build(LoRADistillation, {**SHRUNK, "lora.layers": "all", "train.optimizer.lr": 0.01})
    with open_run() as run:
        first = method(run, data=pictures, teacher=taught())
    with open_run() as run:
        with pytest.raises(RecipeError, match=r"guidance of 7.5 inside.*guidance\.scale=1"):
            method(run, data=pictures, teacher=GivenTeacher(first))
        again = dataclasses.replace(method, guidance=TeacherGuidance(scale=1.0))
        second = again(run, data=pictures, teacher=GivenTeacher(first))
    assert second.base.fingerprint == first.merged().fingerprint


@pytest.mark.parametrize("fields", [{"net.kind": "residual-mlp"}, {}])
def test_updates_need_the_network_of_a_teacher(fields, open_run, pictures, taught):
    method = build(LoRADistillation, {**SHRUNK, **fields})
    with open_run() as run:
        if fields:
            with pytest.raises(RecipeError, match="inside a teacher's network"):
                method(run, data=pictures, teacher=taught())
        else:
            with pytest.raises(RecipeError, match="inside a teacher's network"):
                method(run, data=DATA, teacher=GivenTeacher("exact"))


@pytest.mark.parametrize("name", ["lora-distillation", "agd"])
def test_a_network_of_stable_diffusions_class_is_adapted_whole(name, open_run, pictures, taught, tmp_path):
    net = DiffusersNet(
        cls="UNet2DConditionModel",
        config={
            "block_out_channels": (8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 8,
            "attention_head_dim": 4,
        },
    )
    fields = {**SHRUNK, **PAPER[name], **({"adapters.hidden": 4} if name == "agd" else {})}
    teacher = taught(net)
    with open_run() as run:
        made = build(CLASSES[name], fields)(run, data=pictures, teacher=teacher)
    assert made(2, [0, 1], steps=1).isfinite().all()
    if name == "agd":
        assert isinstance(made.adapter, GuidanceAdapters)
        assert {id(p) for p in teacher.given.module.parameters()} < {id(p) for p in made.module.parameters()}
    else:
        assert made.adapter == LoRA()
        assert made.save_lora(tmp_path).exists()


@pytest.mark.parametrize("name", PAPER)
def test_two_processes_learn_what_one_does(name, pictures, taught, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    method = build(CLASSES[name], {**SHRUNK, **PAPER[name]}, name=name)
    teacher = taught(DiT(width=8, depth=1, heads=2), CosineProcess() if name == "guided-distillation" else None)

    def learn(run):
        made = method(run, data=pictures, teacher=teacher)
        return {key: tensor.clone() for key, tensor in made.module.state_dict().items()}

    found = []
    for world in (1, 2):
        monkeypatch.setenv("ATTAR_HOME", str(tmp_path / f"home-{world}"))
        found.append(as_group(world, tmp_path / str(world), learn)[0])
    assert found[0].keys() == found[1].keys()
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, atol=1e-5, rtol=1e-4)

"""LCM: its levels, what the student is told, its loss and average, PixArt-δ's setting, and networks of diffusers."""

import math

import pytest
import torch

from attar.artifacts import load
from attar.artifacts.sampler import Reading, Sampler
from attar.diffusion.consistency import Consistent
from attar.diffusion.specs import DiscreteProcess
from attar.errors import RecipeError
from attar.methods.sampler.core.distillation import Phase
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.lcm import LatentConsistency as LCM
from attar.metrics.work import WorkMeter
from attar.nets.denoiser_specs import DiffusersNet
from attar.spec import build

VP = DiscreteProcess(betas="scaled-linear")
TINY = {"train.steps": 3, "train.batch": 6}
PHASE = Phase("distil", 3)


def test_neighbours_are_20_of_1000_steps_apart_and_the_last_is_level_0():
    method, process = LCM(), VP.build()
    levels = process.label(method.pairs.grid(process, 50))
    assert levels.round().tolist() == [0, *range(19, 1000, 20)]
    pair = method.pairs.draw(4000, process, torch.Generator().manual_seed(0))
    t, s = (process.label(u).round().long() for u in (pair.t, pair.s))
    assert set(t.tolist()) == set(range(19, 1000, 20))
    assert torch.equal(s, (t - 20).clamp_min(0))
    assert pair.s.min() * 1000 == 1  # ᾱ_0, not clean data


def test_the_loss_is_written_out(open_run, pictures, taught):
    """One guided DDIM step of the teacher, the boundary on both sides, pseudo-Huber of elements, by hand."""
    given = taught(process=VP)
    with open_run(seed=2) as run:
        method = build(LCM, TINY)
        lesson = method.begin(run, pictures, given)
        with torch.no_grad():
            for parameter in lesson.student.module.parameters():
                parameter.add_(0.05)
        moment = method.moment(lesson, PHASE, 1)
        pair = method.pair(lesson, moment)
        (terms,) = method.terms(lesson, moment)
        told, process = moment.condition, VP.build()
        x0, noise, which = moment.batch.x0, moment.batch.noise, moment.batch.condition
        teacher, student, target = given.given.module, lesson.student.module, lesson.learner.ema["target"]
        w = told["guidance"][:, None, None, None]

        def level(t):
            alpha, sigma = process.alpha(t), process.sigma(t)
            return alpha[:, None, None, None], sigma[:, None, None, None], process.label(t)

        def f(net, x, t):
            alpha, sigma, k = level(t)
            tau = 10 * k[:, None, None, None]
            eps = net(x.float(), (k / 1000).float(), told)
            root = (tau**2 + 0.25).sqrt()
            return 0.25 / root**2 * x + tau / root * (x - sigma * eps) / alpha

        (alpha, sigma, k), (alpha_s, sigma_s, _) = level(pair.t), level(pair.s)
        x_t = (alpha * x0 + sigma * noise).float()
        asked, null = (teacher(x_t, (k / 1000).float(), c) for c in (which, torch.full_like(which, 3)))
        eps = asked + w * (asked - null)
        x_s = alpha_s * (x_t - sigma * eps) / alpha + sigma_s * eps
        difference = f(student, x_t, pair.t) - f(target, x_s, pair.s)
        loss = ((difference**2 + 1e-6).sqrt() - 1e-3).mean()
        assert terms["consistency"].item() == pytest.approx(loss.item(), rel=1e-3)
        assert torch.equal(moment.scale - 1, told["guidance"])


def test_the_student_is_told_w_from_2_to_14_and_begins_as_its_teacher(open_run, pictures, taught):
    given = taught(process=VP)
    with open_run() as run:
        method = build(LCM, {"train.batch": 512})
        lesson = method.begin(run, pictures, given)
        w = method.moment(lesson, PHASE, 0).condition["guidance"]
        assert 2 <= w.min() < 2.5
        assert 13.5 < w.max() <= 14
        x, t, which = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.9], dtype=torch.float64), torch.tensor([0, 2])
        student = lesson.view.output(x, t, {"condition": which, "guidance": torch.tensor([2.0, 9.0])})
        assert torch.equal(student, given.given.denoiser.output(x, t, which))  # the new input is zero at first


def test_the_average_that_is_aimed_at_forgets_a_twentieth_a_step(open_run, pictures, taught):
    with open_run() as run:
        method = build(LCM, TINY)
        lesson = method.begin(run, pictures, taught(process=VP))
        name, start = next((n, p.clone()) for n, p in lesson.student.module.named_parameters() if p.dim() == 2)
        for terms in method.terms(lesson, method.moment(lesson, PHASE, 0)):
            run.backward(terms, lesson.learner)
        lesson.learner.step()
        now, kept = (dict(m.named_parameters())[name] for m in (lesson.student.module, lesson.learner.ema["target"]))
        torch.testing.assert_close(kept, 0.95 * start + 0.05 * now)
        assert not torch.equal(now, start)


def test_the_boundary_is_x_at_level_0_and_the_network_beyond(taught):
    denoiser = taught(process=VP).given.denoiser
    x, which = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    f = Consistent(denoiser, "lcm", 10.0)
    first, later = (torch.full((2,), (k + 1) / 1000, dtype=torch.float64) for k in (0, 1))
    assert torch.equal(f.x0(x, first, which), x)
    skip, out = 0.25 / 100.25, 10 / math.sqrt(100.25)
    torch.testing.assert_close(f.x0(x, later, which), skip * x + out * denoiser.x0(x, later, which))


def test_a_teacher_on_another_process_is_refused_before_anything_is_trained(open_run, pictures, taught):
    for given, fields in ((None, {"teaching.process": "flow"}), (taught(), {})):
        with open_run() as run, pytest.raises(RecipeError, match="process=vp"):
            build(LCM, {**TINY, **fields})(run, data=pictures, teacher=given)
        assert not run.parents


def test_pixarts_setting_has_one_guidance_that_the_student_is_not_told(open_run, pictures, taught):
    method = build(LCM, {"train.steps": 2, "train.batch": 4}, preset="pixart")
    linear = DiscreteProcess(betas="linear")
    assert method.teaching.process == linear
    with open_run() as run:
        lesson = method.begin(run, pictures, taught(process=linear))
        moment = method.moment(lesson, PHASE, 0)
        assert moment.scale == 5.5  # w = 4.5
        assert torch.equal(moment.condition, moment.batch.condition)
        assert not lesson.student.extras.guidance
        assert lesson.student.reading.guidance == 5.5
        with pytest.raises(RecipeError, match=r"5\.5 inside"):  # a second guidance when sampling would double it
            lesson.student(2, guidance=3.0)


def test_low_rank_updates_aim_at_themselves_and_leave_the_teacher_inside(open_run, pictures, taught, tmp_path):
    given = taught(process=VP)
    fields = {"lora.rank": 2, "lora.alpha": 2, "train.steps": 2, "train.batch": 4}
    with open_run() as run:
        method = build(LCM, fields, preset="lora")
        made = method(run, data=pictures, teacher=given)
    assert method.target is None
    assert made.reading.drawing.boundary == "lcm"
    again = load(made.save(tmp_path / "student"))
    torch.testing.assert_close(again(3, steps=2), made(3, steps=2))
    assert not torch.equal(
        made(3, steps=2), given.given.with_module(given.given.module, drawing=method.drawing())(3, steps=2)
    )


def test_samples_are_drawn_from_evenly_chosen_levels_and_guidance_costs_nothing(open_run, pictures, taught):
    with open_run() as run:
        made = build(LCM, TINY)(run, data=pictures, teacher=taught(process=VP))
    seen, told = [], []

    def keep(_, given):
        seen.append(float(given[1][0]))
        told.append(float(given[2]["guidance"][0]))

    made.module.register_forward_pre_hook(keep)
    meter = WorkMeter()
    meter.watch("student", made.module)
    with meter:
        made(2, guidance=9.0)
    assert [round(1000 * level) for level in seen] == [999, 759, 499, 239]  # of the 50 that are learned
    assert told == [8.0] * 4
    assert meter.nfe("student", 2) == 4
    assert made.reading.guidance == 9.0  # the middle of what it was trained with


def test_a_text_network_of_diffusers_is_distilled_saved_loaded_and_drawn_from(open_run, pictures, tmp_path):
    net = DiffusersNet(
        cls="UNet2DConditionModel",
        config={
            "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "cross_attention_dim": 6,
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        },
    )  # fmt: skip
    pictures.vectors = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    with open_run() as run:
        teacher = Sampler.fresh(net, pictures, Reading(process=VP, prediction="eps"), run.rng("teacher"))
        made = build(LCM, {"train.steps": 2, "train.batch": 2})(run, data=pictures, teacher=GivenTeacher(teacher))
    again = load(made.save(tmp_path / "student"))
    assert again.extras.guidance
    drawn = again(2, ["class 0", "class 2"], steps=2)
    torch.testing.assert_close(drawn, made(2, ["class 0", "class 2"], steps=2))
    assert drawn.isfinite().all()

"""SANA-Sprint: a teacher with a gentle time, the wrapper of flow matching, what a discriminator is shown."""

import math

import pytest
import torch

from attar.data.samples import Samples
from attar.diffusion import Flow, Mixture, TrigFlow, transfer
from attar.diffusion.specs import DiscreteProcess
from attar.errors import RecipeError
from attar.methods.sampler.core.steadying import Steadying
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.lora_distillation import LoRADistillation
from attar.methods.sampler.sana_sprint import SanaSprint
from attar.methods.sampler.scm import ContinuousConsistency
from attar.nets.denoiser_specs import DiffusersNet, DiT, PointMLP, ResidualMLP
from attar.spec import build

TINY = {"train.steps": 3, "train.batch": 6, "warmup": 0, "adversary.hidden": 8, "steadying.train.steps": 3,
        "steadying.train.batch": 6}  # fmt: skip
STEEP = ResidualMLP(width=16, blocks=2, time_scale=100.0)


def begun(run, data, given, **fields):
    method = build(SanaSprint, {**TINY, **fields})
    lesson = method.begin(run, data, given)
    lesson.state = method.build(lesson)
    return method, lesson, method.moment(lesson, method.phases()[0], 0)


def test_the_flow_teacher_on_trigflow_is_the_papers_formula(taught):
    """F̂ = [(1 − 2t) x + (1 − 2t + 2t²) v(x, t)] / √(t² + (1 − t)²) at x = x_trig / σ_d · √(t² + (1 − t)²)."""
    teacher, angle = taught().given.denoiser, torch.tensor([0.1, 0.7, 1.2, 1.5], dtype=torch.float64)
    x_trig = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))
    root = (t**2 + (1 - t) ** 2).sqrt().reshape(-1, 1, 1, 1)
    x = (x_trig * root).float()
    v = teacher.output(x, t, torch.tensor([0, 1, 2, 0]))
    t4 = t.reshape(-1, 1, 1, 1)
    expected = ((1 - 2 * t4) * x + (1 - 2 * t4 + 2 * t4**2) * v) / root
    got = transfer(teacher, TrigFlow()).predict(x_trig, angle, torch.tensor([0, 1, 2, 0]), kind="trig")
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


def test_a_steep_teacher_is_tuned_first_and_the_student_begins_as_it(open_run, pictures, taught):
    given = taught(STEEP)
    before = given.fingerprint
    with open_run() as run:
        _, lesson, _ = begun(run, pictures, given)
        assert list(run.parents) == ["steady teacher"]
        assert lesson.teacher.sampler.net.time_scale == lesson.student.net.time_scale == 1.0
        assert lesson.teacher.sampler.fingerprint != before
        student = dict(lesson.student.module.named_parameters())
        for name, parameter in lesson.teacher.sampler.module.named_parameters():
            assert torch.equal(parameter, student[name])
    assert given.fingerprint == before


def test_a_gentle_teacher_stays_as_it_is(open_run, pictures, taught):
    given = taught()
    with open_run() as run:
        _, lesson, _ = begun(run, pictures, given)
        assert not run.parents
        assert lesson.teacher.sampler.fingerprint == given.fingerprint


def test_gradients_by_time_fall_with_the_scale_of_labels(taught):
    """What steadying is for: the derivative by t of a network that is told 100 t is a hundred times as steep."""
    lengths = []
    for scale in (1.0, 100.0):
        view = taught(ResidualMLP(width=16, blocks=2, frequency=1.0, time_scale=scale)).given.denoiser
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        t = torch.full((4,), 1e-3)

        def output(u, view=view, x=x):
            return view.output(x, u, torch.tensor([0, 1, 2, 0]))

        lengths.append(torch.func.jvp(output, (t,), (torch.ones(4),))[1].norm().item())
    assert lengths[1] > 30 * lengths[0]


def test_steadying_learns_and_keeps_what_was_known(open_run, pictures, taught):
    method = build(Steadying, {"train.steps": 20, "train.batch": 16, "train.optimizer.lr": 5e-3})
    with open_run() as run:
        given = taught(STEEP)
        made = method(run, data=pictures, teacher=given)
    assert made.net == ResidualMLP(width=16, blocks=2, time_scale=1.0)
    assert made.extras == given.given.extras
    x0, condition = pictures.draw(200, torch.Generator().manual_seed(1))
    noise, t = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)), torch.full((200,), 0.5)
    x_t = Flow().diffuse(x0, noise, t).float()
    errors = [
        (view.output(x_t, t, condition) - (noise - x0)).square().mean().item()
        for view in (made.denoiser, given.given.with_module(given.given.module).denoiser)
    ]
    assert errors[0] < errors[1]


def test_steadying_begins_with_a_teachers_updates_merged(open_run, pictures, taught):
    fields = {"lora.rank": 2, "lora.layers": "all", "steps": 4, "train.steps": 2, "train.batch": 6}
    with open_run() as run:
        adapted = build(LoRADistillation, {**fields, "guidance.scale": 2.0})(run, data=pictures, teacher=taught(STEEP))
        still = build(Steadying, {"train.steps": 1, "train.optimizer.lr": 1e-12})
        made = still(run, data=pictures, teacher=GivenTeacher(adapted))
    for name, value in adapted.merged().module.state_dict().items():
        torch.testing.assert_close(made.module.state_dict()[name], value)


def test_steadying_changes_the_config_of_networks_of_diffusers_alone():
    method = Steadying(config={"qk_norm": "rms_norm_across_heads"})
    sana = DiffusersNet(cls="SanaTransformer2DModel", config={"num_layers": 2})
    assert method.concerns(sana)
    assert method.changed(sana).config == {"num_layers": 2, "qk_norm": "rms_norm_across_heads"}
    assert method.changed(sana).time_scale == 1.0
    with pytest.raises(RecipeError, match="networks of diffusers"):
        method.changed(DiT(time_scale=1000.0))


def test_the_terms_are_scm_with_its_prior_weight_and_half_the_discriminators_word(open_run, pictures, taught):
    fields = {"guidance": {"scale": 1.0, "highest": None, "embedded": False}, "shown.at_highest": 1.0}
    with open_run() as run:
        method, lesson, moment = begun(run, pictures, taught(), **fields)
        first, second = (dict(terms) for terms in method.terms(lesson, moment))
        made = lesson.student.denoiser.x0(batch_noise(run), one(6), moment.condition)
        word = lesson.state.discriminator.term(moment, made)
        assert second["adversarial"].item() == pytest.approx(0.5 * word.item(), rel=1e-4)
        t = lesson.state.hardness[0]
        assert first.keys() == {"consistency"}
        weighted = lesson.state.hardness[1]
    with open_run() as run:
        plain = build(ContinuousConsistency, {"train.steps": 3, "train.batch": 6, "warmup": 0,
                                              "times": {"kind": "log-normal", "mean": 0.2, "std": 1.6}})  # fmt: skip
        lesson = plain.begin(run, pictures, taught())
        lesson.state = plain.build(lesson)
        list(plain.terms(lesson, plain.moment(lesson, plain.phases()[0], 0)))
        torch.testing.assert_close(lesson.state.hardness[0], t)
        expected = lesson.state.hardness[1] / (pictures.sigma_data * torch.tan(t))
        torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-6)


def test_pure_noise_weighs_nothing_and_the_discriminator_sees_the_angles_of_the_paper(open_run, pictures, taught):
    assert SanaSprint().prior(torch.tensor([0.0, math.pi / 4, math.pi / 2]), 0.5).tolist() == [1e4, 2.0, 0.0]
    with open_run() as run:
        _, lesson, _ = begun(run, pictures, taught(), **{"adversary.times.std": 1e-6})
        t = lesson.state.discriminator.spec.times.draw(1, lesson.process, torch.Generator())
    angle = math.atan(math.exp(-0.6) / 0.5)  # where data of deviation 1/2 have this ratio
    assert float(t / (1 - t)) == pytest.approx(pictures.sigma_data * math.tan(angle), rel=1e-5)


def batch_noise(run):
    """The noise that `made` draws at step 0, behind 6 draws of a time and 6 of whether it is the largest."""
    rng = run.rng("shown", 0)
    torch.randn(6, generator=rng, dtype=torch.float64)
    torch.rand(6, generator=rng, dtype=torch.float64)
    return torch.randn(6, 1, 8, 8, generator=rng)


def one(n):
    return torch.ones(n, dtype=torch.float64)


def test_half_of_what_the_discriminator_is_shown_is_predicted_from_the_largest_time(open_run, pictures, taught):
    method = SanaSprint()
    t = method.shown.draw(4000, TrigFlow(sigma_data=0.5), torch.Generator().manual_seed(0))
    largest = t > math.pi / 2 - 1e-9
    assert 0.47 < largest.double().mean() < 0.53
    tau = (0.5 * torch.tan(t[~largest])).log()
    assert tau.mean().item() == pytest.approx(0.2, abs=0.12)
    assert tau.std().item() == pytest.approx(1.6, abs=0.12)


def test_each_part_can_stand_alone(open_run, pictures, taught):
    with open_run() as run:
        method, lesson, moment = begun(run, pictures, taught(), consistency=0.0)
        assert [list(terms) for terms in method.terms(lesson, moment)] == [["adversarial"]]
        before = [p.clone() for p in lesson.state.discriminator.learner.parameters]
        method.after(lesson, moment)
        after = lesson.state.discriminator.learner.parameters
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with open_run() as run:
        method, lesson, moment = begun(run, pictures, taught(), **{"adversary.weight": 0.0})
        assert [list(terms) for terms in method.terms(lesson, moment)] == [["consistency"]]
        method.after(lesson, moment)


def test_the_second_step_is_at_1_3_on_trigflow(open_run, pictures, taught):
    with open_run() as run:
        _, lesson, _ = begun(run, pictures, taught())
        drawing = lesson.student.reading.drawing
    ratio = pictures.sigma_data * math.tan(1.3)
    assert drawing.highest == pytest.approx(1.0)
    assert drawing.times == pytest.approx((ratio / (1 + ratio),))


def test_a_teacher_in_closed_form_needs_no_steadying_and_has_no_features(open_run):
    data = Samples.of(Mixture.ring())
    net = {"teaching": {"net": PointMLP(width=8, depth=1)}}
    with open_run() as run, pytest.raises(RecipeError, match="put the adversarial weight"):
        begun(run, data, GivenTeacher("exact"), **net)


def test_the_papers_setting_runs(open_run, pictures, taught):
    method = build(SanaSprint, {"train.steps": 2, "train.batch": 6}, preset="paper")
    assert (method.adversary.weight, method.adversary.mismatched, method.warmup, method.steadying.train.steps) == (
        0.5, True, 4000, 5000,
    )  # fmt: skip
    assert method.guidance.embedded
    with open_run() as run:
        made = method(run, data=pictures, teacher=taught(process=DiscreteProcess(), prediction="v"))
    assert torch.isfinite(made(3, steps=2)).all()
    assert made.reading.guided == "embedded"


def test_sanas_own_network_is_steadied_with_norms_in_its_attention(open_run, pictures, taught):
    """At a tiny size: labels of 1000 t become t, and norms of queries and keys begin as new."""
    net = DiffusersNet(
        cls="SanaTransformer2DModel",
        config={
            "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 4, "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": 6, "patch_size": 2,
        },
    )  # fmt: skip
    pictures.vectors = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    fields = {"steadying.config": {"qk_norm": "rms_norm_across_heads"}, "derivative": "central"}
    with open_run() as run:
        made = build(SanaSprint, {**TINY, "train.steps": 1, **fields})(run, data=pictures, teacher=taught(net))
    assert made.net.time_scale == 1.0
    assert any("norm_q" in name for name, _ in made.module.named_parameters())
    assert torch.isfinite(made(2, ["class 0", "class 1"], steps=2)).all()

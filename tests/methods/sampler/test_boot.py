"""BOOT: signals of trajectories, steps of the student's own state, the noisy end, and a sample in one look."""

import pytest
import torch
from exact import DATA, MEAN, STD, carried, lesson, student
from torch import nn

from attar.artifacts import load
from attar.artifacts.sampler import Reading, Sampler
from attar.diffusion import Cosine, Flow, ddim
from attar.diffusion.signal import last_time, share_kept, signal, signal_below
from attar.diffusion.specs import CosineProcess, DiscreteProcess, EdmProcess
from attar.errors import RecipeError
from attar.methods.sampler.boot import Bootstrapping as Boot
from attar.methods.sampler.core.distillation import Phase
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.training import SamplerTraining
from attar.nets.denoiser_specs import DiffusersNet
from attar.spec import build
from attar.train.generation import Generation, arms_of

TRAIN = SamplerTraining(batch=128)
PHASE = Phase("distil", 3)


def exact_signal(noise, t):
    """y_t = (x_t − t ε) / (1 − t) of the Gaussian's trajectory from ε, its limit m at t = 1."""
    one = torch.ones(len(noise), dtype=torch.float64)
    inner = t.double().clamp(0, 1 - 1e-6)
    x_t = carried(Flow(), noise, one, inner)
    return (x_t - inner[:, None] * noise) / (1 - inner)[:, None]


class Knows(nn.Module):
    """A network whose signal is exact, but for `error(t)`."""

    def __init__(self, error=torch.zeros_like):
        super().__init__()
        self.error, self.nothing = error, nn.Parameter(torch.zeros(()))

    def forward(self, noise, label, condition=None):
        y = exact_signal(noise.double(), label) + self.error(label.double())[:, None]
        return (noise - y).to(noise.dtype) + self.nothing


def knowing(**fields):
    sampler = student()
    sampler.module = Knows(**fields)
    return sampler


def losses(run, method, sampler):
    made = lesson(run, method, sampler)
    found = {}
    for terms in method.terms(made, method.moment(made, PHASE, 0)):
        found |= {name: float(value.detach()) for name, value in terms.items()}
    return found


def test_the_exact_signal_is_the_fixed_point(open_run):
    with open_run() as run:
        fine = losses(run, Boot(train=TRAIN, solver="heun", substeps=8), knowing())
        assert max(fine.values()) < 1e-4
    with open_run() as run:
        assert losses(run, Boot(train=TRAIN, interval=0.3, weight="none"), knowing())["bootstrapping"] > 1e-3


def test_another_signal_is_none_and_a_shift_is_seen_at_the_noisy_end(open_run):
    with open_run() as run:
        bent = losses(run, Boot(train=TRAIN), knowing(error=lambda t: t * (1 - t)))
        assert bent["bootstrapping"] > 1e-2
        assert bent["boundary"] < 1e-6
    with open_run() as run:
        moved = losses(run, Boot(train=TRAIN, boundary=2.0), knowing(error=torch.ones_like))
        assert moved["boundary"] == pytest.approx(2.0, rel=1e-3)
    with open_run() as run:
        assert list(losses(run, Boot(train=TRAIN, boundary=0.0), knowing())) == ["bootstrapping"]


def test_a_step_of_ddim_is_one_of_the_signal():
    process, view = Cosine(), DATA.exact(Cosine())
    rng = torch.Generator().manual_seed(0)
    noise, y = (torch.randn(5, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.05, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    s = torch.tensor([0.0, 0.28, 0.5, 0.85, 0.98], dtype=torch.float64)
    rho = process.sigma(s) / process.alpha(s) * process.alpha(t) / process.sigma(t)
    torch.testing.assert_close(share_kept(process, t, s), rho)
    x_t = process.diffuse(y, noise, t)
    want = (1 - rho)[:, None] * view.x0(x_t, t) + rho[:, None] * y
    torch.testing.assert_close(signal_below(view, y, noise, torch.stack([t, s]), step=ddim), want)


def test_the_state_keeps_the_noise_it_began_with(open_run):
    """With other noise in x_t the exact signal would not be carried to the exact signal."""
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.full((64,), 0.6, dtype=torch.float64)
    ways = torch.linspace(0.6, 0.58, 9, dtype=torch.float64)[:, None].expand(9, 64)
    y_t, want = exact_signal(noise, t), exact_signal(noise, ways[-1])
    torch.testing.assert_close(
        signal_below(DATA.exact(Flow()), y_t, noise, ways, step=ddim), want, atol=1e-3, rtol=1e-3
    )
    other = signal_below(DATA.exact(Flow()), y_t, noise.flip(0), ways, step=ddim)
    assert float((other - want).abs().max()) > 0.01


@pytest.mark.parametrize("weight", ["rate", "interval", "none"])
def test_the_loss_is_written_out_with_a_guided_teacher(open_run, pictures, taught, weight):
    process = CosineProcess()
    fields = {"train.batch": 6, "guidance.scale": 3.0, "weight": weight, "boundary": 0.5, "interval": 0.1}
    with open_run(seed=2) as run:
        method = build(Boot, fields)
        made = method.begin(run, pictures, taught(process=process))
        with torch.no_grad():
            for parameter in made.student.module.parameters():
                parameter.add_(0.05)
        moment = method.moment(made, PHASE, 1)
        bootstrapping, boundary = method.terms(made, moment)
        net, teacher = made.student.module, made.teacher.sampler.module
        noise, told = moment.batch.noise, moment.condition

        def rows(values):
            return values.float().reshape(-1, 1, 1, 1)

        def clean(x, t):  # v, guided
            asked, null = (teacher(x, t.float(), c) for c in (told, torch.full_like(told, 3)))
            alpha, sigma = (rows(f(t)) for f in (process.build().alpha, process.build().sigma))
            return alpha * x - sigma * (null + 3 * (asked - null))

        t, s = method.times(process.build(), moment)
        torch.testing.assert_close(t - s, torch.full_like(t, 0.1))
        alpha, sigma = process.build().alpha, process.build().sigma
        y_t = -net(noise, t.float(), told)  # −v of pure noise
        rho = sigma(s) * alpha(t) / (alpha(s) * sigma(t))
        x_t = rows(alpha(t)) * y_t + rows(sigma(t)) * noise
        y_s = rows(1 - rho) * clean(x_t, t) + rows(rho) * y_t
        w = {"rate": (1 - rho) ** -2, "interval": torch.full_like(rho, 100.0), "none": torch.ones_like(rho)}[weight]
        errors = (-net(noise, s.float(), told) - y_s.detach()).square().flatten(1).mean(1)
        want = (w.float() * errors).mean()
        assert bootstrapping["bootstrapping"].item() == pytest.approx(want.item(), rel=1e-3)
        bootstrapping["bootstrapping"].backward()
        known = [parameter for parameter in net.parameters() if parameter.grad is not None]
        for parameter, gradient in zip(known, torch.autograd.grad(want, known), strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)  # nothing passes the target
        one = torch.ones(6, dtype=torch.float64)
        end = (-net(noise, one.float(), told) - clean(noise, one)).square().mean()
        assert boundary["boundary"].item() == pytest.approx(0.5 * end.item(), rel=1e-3)


def test_no_data_are_read(open_run, pictures, taught):
    found = []
    for factor in (1.0, -3.0):
        with open_run() as run:
            method = build(Boot, {"train.batch": 6})
            made = method.begin(run, pictures, taught())
            moment = method.moment(made, PHASE, 0)
            moment.batch.x0.mul_(factor)
            found.append([float(sum(terms.values()).detach()) for terms in method.terms(made, moment)])
    assert found[0] == found[1]


def test_times_stand_on_levels_where_there_are_levels(open_run, pictures, taught):
    process = DiscreteProcess(betas="linear")
    with open_run() as run:
        method = build(Boot, {"train.batch": 2000, "interval": 0.9})
        made = method.begin(run, pictures, taught(process=process))
        t, s = method.times(made.process, method.moment(made, PHASE, 0))
    for time in (t, s):
        torch.testing.assert_close((time * 1000).round(), time * 1000)
    assert float(s.min()) == last_time(made.process) == 1e-3
    torch.testing.assert_close(t - s, torch.where(s > 1e-3, 0.9, t - s).double())
    assert last_time(Flow()) == 0.0


def test_networks_that_predict_the_noise_are_read_beside_it(pictures, taught):
    view = taught(process=DiscreteProcess(betas="linear")).given.denoiser
    noise, which = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    shown = float(view.process.sigma(torch.tensor(1.0, dtype=torch.float64))) * noise
    torch.testing.assert_close(signal(view, noise, t, which), noise - view.output(shown, t, which))
    flow = taught().given.denoiser
    torch.testing.assert_close(signal(flow, noise, t, which), noise - flow.output(noise, t, which))
    with pytest.raises(RecipeError, match="EDM"):
        signal(taught(process=EdmProcess()).given.denoiser, noise, t, which)


def test_a_sample_is_one_look_at_the_noise_told_that_it_is_clean():
    sampler = knowing()
    sampler = sampler.with_module(sampler.module, drawing="signal")
    noise = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampler(7, noise=noise), torch.tensor(MEAN) + STD * noise, atol=1e-5, rtol=1e-5)
    with pytest.raises(RecipeError, match="guidance"):
        sampler(7, [0] * 7, guidance=2.0)


def test_a_gaussian_is_learned_without_data(open_run):
    fields = {
        "teaching": {"net": {"kind": "mlp", "width": 32, "depth": 2}, "process": "flow"}, "interval": 0.1,
        "train": {"steps": 500, "batch": 64, "optimizer": {"kind": "adam", "lr": 3e-3}},
    }  # fmt: skip
    with open_run() as run:
        made = build(Boot, fields)(run, data=DATA, teacher=GivenTeacher("exact"))
    noise = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    want = torch.tensor(MEAN) + STD * noise
    assert float((made(400, noise=noise) - want).square().mean().sqrt()) < 0.12


def test_guidance_may_be_told_and_steps_must_fit(open_run, pictures, taught):
    fields = {"train": {"steps": 1, "batch": 4}, "guidance": {"scale": 1.0, "highest": 4.0, "embedded": True}}
    with open_run() as run:
        made = build(Boot, fields)(run, data=pictures, teacher=taught())
        assert made.extras.guidance
        assert made(3, guidance=2.0).isfinite().all()
    with open_run() as run:
        method = build(Boot, {"interval": 0.6, "highest": 0.5})
        with pytest.raises(RecipeError, match="lessen interval"):
            method.build(lesson(run, Boot(), student()))


def test_a_network_of_diffusers_is_distilled_saved_and_loaded(open_run, pictures, tmp_path):
    config = {
        "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    with open_run() as run:
        teacher = Sampler.fresh(
            DiffusersNet(config=config), pictures,
            Reading(process=DiscreteProcess(betas="scaled-linear"), prediction="v"), run.rng("teacher"),
        )  # fmt: skip
        made = build(Boot, {"train": {"steps": 2, "batch": 2}})(run, data=pictures, teacher=GivenTeacher(teacher))
    again = load(made.save(tmp_path / "student"))
    torch.testing.assert_close(again(2, steps=1), made(2, steps=1))
    assert made.steps == 1
    assert [arm.steps for arm in arms_of(made, None, Generation(), None)] == [1]  # 2 and 4 would be the same samples

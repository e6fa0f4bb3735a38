"""Our samplers and diffusers' own schedulers carry the same network through the same numbers."""

import functools

import pytest
import torch

from attar.diffusion import (
    VE,
    Cosine,
    Denoiser,
    Flow,
    TrigFlow,
    VPDiscrete,
    ddim,
    diffusers_network,
    dpmpp_2m,
    euler,
    from_scheduler,
    heun,
    integrate,
    lcm_boundary,
    multistep_consistency,
    scheduler_times,
    segmented,
    to_scheduler,
)
from attar.errors import RecipeError

diffusers = pytest.importorskip("diffusers")

X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FIXED = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.double)


def network(x, label, condition=None):
    """Some smooth function of x and t stands for a network: equality must hold for any."""
    return torch.tanh(0.7 * x + 0.001 * label.reshape(-1, 1, 1, 1)) + 0.1 * x


def ours(scheduler, step, time_scale=1.0, x=X):
    process, prediction = from_scheduler(scheduler)
    denoiser = Denoiser(network, process, prediction, time_scale=time_scale)
    return integrate(denoiser, x, scheduler_times(scheduler, process), step=step, draw=lambda x: FIXED)


def theirs(scheduler, x=X, **options):
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(scaled, t.expand(len(x)))
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x


def close(got, expected, atol=2e-5):  # diffusers keeps its levels in float32
    torch.testing.assert_close(got, expected.double(), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("alpha_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim(prediction, alpha_one, eta):
    scheduler = diffusers.DDIMScheduler(
        **SCALED, prediction_type=prediction, set_alpha_to_one=alpha_one, clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(5)
    options = {"eta": eta, "variance_noise": FIXED} if eta else {}
    close(ours(scheduler, functools.partial(ddim, eta=eta)), theirs(scheduler, **options))


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver(algorithm, order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="linear", algorithm_type=algorithm, solver_order=order, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(7)
    stochastic = algorithm.startswith("sde")
    if order == 1:
        step = functools.partial(ddim, eta=float(stochastic))
    else:
        step = functools.partial(dpmpp_2m, stochastic=stochastic)
    options = {"variance_noise": FIXED} if stochastic else {}
    close(ours(scheduler, step), theirs(scheduler, **options), atol=2e-4)


def test_lcm(monkeypatch):
    module = __import__("diffusers.schedulers.scheduling_lcm", fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **options: FIXED)
    scheduler = diffusers.LCMScheduler(**SCALED)
    scheduler.set_timesteps(4)
    process, prediction = from_scheduler(scheduler)
    denoiser = Denoiser(network, process, prediction)

    def function(x, t, condition):
        skip, out = lcm_boundary(process.label(t))
        return skip * x + out * denoiser.x0(x, t, condition)

    times = process.time_of_step(scheduler.timesteps)
    close(multistep_consistency(function, process, X, times, draw=lambda x: FIXED), theirs(scheduler))


def test_tcd_without_noise_is_the_jump_from_edge_to_edge():
    scheduler = diffusers.TCDScheduler(**SCALED)
    scheduler.set_timesteps(4)
    process, prediction = from_scheduler(scheduler)
    times = scheduler_times(scheduler, process)
    close(segmented(Denoiser(network, process, prediction), X, times), theirs(scheduler, eta=0.0))


def test_euler_of_the_variance_exploding_coordinates_is_ddim():
    scheduler = diffusers.EulerDiscreteScheduler(**SCALED, timestep_spacing="trailing")
    scheduler.set_timesteps(6)
    x = X * scheduler.sigmas[0]
    process, _ = from_scheduler(scheduler)
    alpha = process.alpha(scheduler_times(scheduler, process)[0])
    close(ours(scheduler, ddim, x=alpha * x), theirs(scheduler, x=x), atol=1e-4)


def test_euler_and_heun_of_edm():
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(6)
    x = X * 80
    with torch.no_grad():
        close(ours(scheduler, euler, x=x), theirs(scheduler, x=x), atol=1e-3)
    assert not torch.allclose(ours(scheduler, heun, x=x), ours(scheduler, euler, x=x), atol=1e-2)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(6)
    assert scheduler_times(scheduler, Flow())[0] == pytest.approx(1.0)
    close(ours(scheduler, euler, time_scale=1000.0), theirs(scheduler))


def test_a_scheduler_of_a_process_says_the_process():
    for process, prediction in [
        (VPDiscrete.linear(steps=50), "v"),
        (Flow(shift=3.0), "velocity"),
        (VE(t_max=70.0), "edm"),
        (TrigFlow(sigma_data=0.5), "trig"),
    ]:
        back, kind = from_scheduler(to_scheduler(process, prediction))
        assert kind == prediction
        t = torch.linspace(0.1, 0.9, 5, dtype=torch.double) * process.t_max
        torch.testing.assert_close(back.alpha(t), process.alpha(t), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(back.sigma(t), process.sigma(t), rtol=1e-5, atol=1e-6)
    assert from_scheduler(to_scheduler(Flow(shift=3.0), "velocity"))[0] == Flow(shift=3.0)


def test_unknown_and_contradicting_schedulers_are_refused():
    with pytest.raises(RecipeError, match="predicts 'eps', and 'v' was asked for"):
        from_scheduler(diffusers.DDIMScheduler(), "v")
    with pytest.raises(RecipeError, match="process of CMStochasticIterativeScheduler"):
        from_scheduler(diffusers.CMStochasticIterativeScheduler())
    with pytest.raises(RecipeError, match="set_timesteps"):
        scheduler_times(diffusers.DDIMScheduler(), VPDiscrete.linear())
    with pytest.raises(RecipeError, match="no scheduler for"):
        to_scheduler(Cosine(), "v")


def test_a_tiny_unet_of_diffusers_is_a_denoiser():
    torch.manual_seed(0)
    module = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=2, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=3,
    ).eval()  # fmt: skip
    x, process = torch.randn(2, 1, 8, 8), VPDiscrete.linear()
    denoiser = Denoiser(diffusers_network(module), process, "eps")
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        expected = module(x, 499, class_labels=labels).sample[:, :1]
        torch.testing.assert_close(denoiser.eps(x, process.time_of_step(499), labels), expected)
    with pytest.raises(RecipeError, match="takes no condition"):
        denoiser.eps(x, torch.tensor(0.5), {"text": x})
    with pytest.raises(RecipeError, match="no network of diffusers"):
        diffusers_network(torch.nn.Linear(1, 1))

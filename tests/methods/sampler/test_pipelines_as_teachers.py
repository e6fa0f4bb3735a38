"""Pipelines of diffusers teach: seen and told as their own code does, distilled, written back and loaded again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pipelines import saved

from attar import api
from attar.artifacts import load
from attar.artifacts.drawing import Ode
from attar.artifacts.sampler import Reading, Sampler
from attar.data import Samples
from attar.diffusion.specs import FlowProcess
from attar.errors import AttarError, DataError
from attar.methods.sampler.core.pipeline import Pipeline, save_pipeline
from attar.nets.denoiser_specs import PointMLP

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Return the folder of a pipeline by kind, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = saved(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture
def pictures(tmp_path):
    """Return the URI of grey pictures of 16 pixels in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 1, 16, 16)).astype(np.uint8)
    labels = np.arange(16) % 2
    np.savez(tmp_path / "data.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    return f"npz:{tmp_path / 'data.npz'}"


@pytest.mark.parametrize("kind", ["SD", "SDXL", "SD3", "PixArt"])
def test_the_network_hears_what_the_pipelines_own_code_tells_it(kind, pipeline, pictures):
    given = Pipeline(str(pipeline(kind)))
    data = given.seen(Samples.of(pictures))
    sampler = given.sampler(data)
    x, step = torch.randn(2, 4, 8, 8, generator=rng()), torch.tensor([300, 700])
    told = given._embedded(data.conditions)
    keywords, nested = {}, {}
    for name, value in told.items():
        owner, _, entry = name.rpartition(".")
        (nested if owner else keywords)[entry] = value
    if nested:
        keywords["added_cond_kwargs"] = nested
    with torch.no_grad():
        want = given.network(x, timestep=step, return_dict=False, **keywords)[0][:, :4]
        found = sampler.module(x, step.float(), data.condition(torch.tensor([0, 1])))
        null = sampler.module(x, step.float(), data.condition(torch.tensor([-1, -1])))
    assert torch.allclose(found, want, atol=1e-5)
    assert not torch.allclose(null, want, atol=1e-4)
    assert sampler.denoiser.time_scale == pytest.approx(1000.0 if kind == "SD3" else 1.0)


def test_latents_go_there_and_back(pipeline, pictures):
    given = Pipeline(str(pipeline("SD3")))
    pixels = torch.rand(2, 3, 16, 16, generator=rng())
    latents = given.encode(pixels * 2 - 1)
    raw = given.autoencoder.encode(pixels * 2 - 1).latent_dist.mode()
    assert torch.allclose(latents, (raw - 0.06) * 1.5, atol=1e-6)
    want = given.autoencoder.decode(raw).sample
    assert torch.allclose(given.decode(latents), (want / 2 + 0.5).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        ("SD", "lcm", {"lora.rank": 2}),
        ("SDXL", "consistency", {"guidance.scale": 2.0, "pairs.intervals": 4}),
        ("SD3", "consistency", {"guidance.scale": 2.0, "pairs.intervals": 4}),
        ("PixArt", "consistency", {"guidance.scale": 2.0, "pairs.intervals": 4}),
    ],
    ids=lambda case: case[0],
)
def test_a_pipeline_is_distilled_written_back_and_loaded_again(case, pipeline, pictures, tmp_path, monkeypatch):
    kind, id, fields = case
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    settings = {"data": pictures, "teacher": f"hf:{pipeline(kind)}", "out": str(tmp_path / "run"), "threads": 1}
    made = api.run(id, **settings, **{"train.steps": 2, "train.batch": 4, "guidance.embedded": False}, **fields)
    back = load(tmp_path / "run")
    noise = torch.randn(2, 4, 8, 8, generator=rng(1))
    drawn = made(2, ["0", "1"], noise=noise, steps=1)
    assert torch.equal(back(2, ["0", "1"], noise=noise, steps=1), drawn)
    again = Pipeline(str(api.export(tmp_path / "run", "pipeline", tmp_path / "written")))
    plain = made.merged().module
    assert not torch.equal(_some_weight(again.network), _some_weight(Pipeline(str(pipeline(kind))).network))
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(tensor, plain.model.state_dict()[name])


def _some_weight(network):
    return torch.cat([tensor.flatten() for tensor in network.state_dict().values()])


def test_what_came_from_no_pipeline_does_not_go_back(tmp_path):
    reading = Reading(process=FlowProcess(), prediction="velocity", drawing=Ode())
    own = Sampler.fresh(PointMLP(width=8, depth=1), Samples.of("ring"), reading, rng())
    with pytest.raises(AttarError, match="out of no pipeline"):
        save_pipeline(own, tmp_path / "written")


def test_what_a_pipeline_cannot_see_or_find_is_said(pipeline, tiny_images, tmp_path):
    given = Pipeline(str(pipeline("SD")))
    with pytest.raises(DataError, match="16 pixels a side"):
        given.seen(Samples.of(tiny_images()))
    with pytest.raises(DataError, match="has none"):
        given.seen(Samples.of("ring"))
    with pytest.raises(AttarError, match="no pipeline of diffusers"):
        Pipeline(str(tmp_path / "nowhere"))
